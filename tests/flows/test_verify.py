"""`tempo verify`: JSON lines in, verdicts out; what it refuses, what it lets through, and how it behaves as a pipe."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.pairs import LONGEST_LINE, MOST_LINES, BadPair, line_batches

ROOT = Path(__file__).resolve().parents[2]
Tempo = Callable[..., tuple[int, str, str]]
CORRECT = {"completion": "1+1=2#2", "answer": "2"}
SECONDS = 60


@pytest.fixture
def judged(tempo: Tempo, tmp_path: Path) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Exit code, verdicts and standard error of `tempo verify` on the lines of a file."""

    def judged(*lines: dict[str, Any] | bytes, verifier: str = "arithmetic", **options: str) -> Any:
        file = tmp_path / "pairs.jsonl"
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        file.write_bytes(b"\n".join([*encoded, b""]))
        extra = [part for name, value in options.items() for part in (f"--{name}", value)]
        code, out, err = tempo("verify", "--verifier", verifier, "--input", file, *extra)
        return code, [json.loads(line) for line in out.splitlines()], err

    return judged


def test_each_pair_gets_a_verdict_in_order_beside_its_other_keys(judged):
    lines = [
        {"id": 7, **CORRECT, "tags": {"a": [1, None]}},
        {"completion": "1+1=3#3", "id": "x", "answer": "2"},
        {"completion": "two", "answer": "2"},
        {"completion": "1+1=2#2", "answer": "2", "finish_reason": "length"},
        {"completion": "1+1=2#2", "answer": "2", "is_truncated": True, "finish_reason": None, "options": None},
    ]
    code, verdicts, err = judged(*lines)
    assert code == 0
    seconds = [verdict.pop("seconds") for verdict in verdicts]
    assert all(0 <= spent < 1 for spent in seconds)
    same = {"verifier": "arithmetic", "verifier_version": 1, "failure": None}
    truncated = {**same, "status": "truncated", "reward": 0.0, "extracted_answer": None}
    assert verdicts == [
        {"id": 7, "tags": {"a": [1, None]}, **same, "status": "correct", "reward": 1.0, "extracted_answer": "2"},
        {"id": "x", **same, "status": "wrong", "reward": 0.0, "extracted_answer": "3"},
        {**same, "status": "unparseable", "reward": 0.0, "extracted_answer": None},
        truncated,
        truncated,
    ]
    assert list(verdicts[0]) == ["id", "tags", *list(verdicts[2])]
    assert "5 pairs judged by arithmetic@1" in err
    assert [line.split() for line in err.splitlines()[1:5]] == [
        ["correct", "1", "20.0%"], ["wrong", "1", "20.0%"], ["unparseable", "1", "20.0%"], ["truncated", "2", "40.0%"],
    ]  # fmt: skip
    assert "recredit RUN --verifier arithmetic@1" in err


def test_rewards_are_those_that_were_set_and_null_where_unassigned(tempo: Tempo, tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    rows = [CORRECT, {"completion": "#3", "answer": "2"}, {"completion": "no", "answer": "2"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ("--set", "verification.rewards.wrong=-0.5", "--set", 'verification.rewards.unassigned=["unparseable"]')
    code, out, _ = tempo("verify", "--verifier", "arithmetic", "--input", file, *sets)
    assert (code, [json.loads(line)["reward"] for line in out.splitlines()]) == (0, [1.0, -0.5, None])


def test_what_needs_algebra_is_judged_by_workers_and_options_reach_the_verifier(judged):
    lines = [{"completion": f"So \\boxed{{{said}}}.", "answer": "2(x+1)"} for said in ("2x+2", "2x+1", "2x+2")]
    code, verdicts, _ = judged(*lines, verifier="math")
    assert (code, [verdict["status"] for verdict in verdicts]) == (0, ["correct", "wrong", "correct"])
    row = {"completion": "\\boxed{lead poisoning}", "answer": "B", "options": ["gout", "lead poisoning"]}
    code, verdicts, err = judged(row, verifier="paper_medqa@1")
    assert (code, verdicts[0]["status"]) == (0, "correct")
    assert "use it only to repeat the paper" in err


def test_lines_of_nothing_but_space_are_passed_over_and_count_as_lines(judged):
    byte_order_mark = b"\xef\xbb\xbf" + json.dumps(CORRECT).encode() + b"\r"
    code, verdicts, err = judged(byte_order_mark, b"", b"  \r", CORRECT, b"nothing")
    assert (code, len(verdicts)) == (2, 2)
    assert "line 5: expected a JSON object" in err


BAD = {
    "no JSON": (b"{'completion'}", "expected a JSON object, got \"{'completion'}\" (Expecting property name"),
    "half an object": (b'{"completion": "a"', "expected a JSON object"),
    "two objects": (b'{"completion": "", "answer": "2"} {}', "(Extra data at character 35)"),
    "a list": (b"[1]", 'expected a JSON object {"completion": ..., "answer": ...}, got [1]'),
    "no completion": (b'{"answer": "2", "text": "a"}', 'completion: missing; expected text, got only "answer", "text"'),
    "no answer": (b'{"completion": "a"}', 'answer: missing; expected text, got only "completion"'),
    "a number as completion": (b'{"completion": 2, "answer": "2"}', "completion: expected text, got 2"),
    "null as answer": (b'{"completion": "a", "answer": null}', "answer: expected text, got null"),
    "an empty answer": (b'{"completion": "a", "answer": " "}', 'answer: expected the gold answer, got " "'),
    "another verifier's answer": (b'{"completion": "a", "answer": "72"}', "gold answer '72' cannot be compared"),
    "an ending of another type": (
        b'{"completion": "a", "answer": "2", "is_truncated": "no"}',
        'is_truncated: expected true or false, got "no"',
    ),
    "endings that disagree": (
        b'{"completion": "a", "answer": "2", "is_truncated": false, "finish_reason": "length"}',
        "expected is_truncated and finish_reason to agree ('length' is truncated), got false and \"length\"",
    ),
    "options of another type": (b'{"completion": "", "answer": "2", "options": {"A": ""}}', "options: expected a list"),
    "a key of the verdict": (b'{"completion": "a", "answer": "2", "reward": 1}', "expected no key 'reward'"),
    "no UTF-8": (b'{"completion": "\xff", "answer": "2"}', "expected UTF-8, got the byte 0xff at position 17"),
    "UTF-16": ('{"completion": "", "answer": "2"}'.encode("utf-16"), "expected UTF-8, got the byte 0xff at position 1"),
    "a raw control character": (b'{"completion": "\x00", "answer": "2"}', "(Invalid control character at"),
    "a lone surrogate as answer": (b'{"completion": "a", "answer": "\\ud800"}', "answer: expected Unicode text"),
    "NaN": (b'{"completion": "a", "answer": "2", "id": NaN}', "JSON has no NaN"),
    "a number beyond float64": (b'{"completion": "a", "answer": "2", "id": 1e999}', "no float64 holds 1e999"),
    "a number of 5,000 digits": (b'{"completion": "a", "answer": "2", "id": %s}' % (b"9" * 5000), "4300 digits"),
    "nested too deeply": (b'{"id": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "(nested too deeply)"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), BAD.values(), ids=list(BAD))
def test_a_line_that_cannot_be_judged_ends_it_after_the_verdicts_of_the_lines_before(judged, line, expected):
    code, verdicts, err = judged(CORRECT, CORRECT, line, CORRECT)
    assert code == 2
    assert [verdict["status"] for verdict in verdicts] == ["correct", "correct"]
    assert "pairs.jsonl, line 3: " in err
    assert expected in err
    assert "Verdicts before it: 2, all of them written." in err
    assert len(err) < 1500


def test_what_a_completion_contains_is_data(judged, tempo: Tempo, tmp_path: Path):
    hostile = "\x1b[31m\x9b2J[bold]\u202e\x00\x7f${HOME}\\boxed{2}#"
    code, verdicts, err = judged({"completion": hostile + "9\u0660", "answer": "2", "note\x1b": hostile})
    assert (code, verdicts[0]["extracted_answer"], verdicts[0]["note\x1b"]) == (0, "9\u0660", hostile)
    _, out, _ = tempo("verify", "--verifier", "arithmetic", "--input", tmp_path / "pairs.jsonl")
    assert out.isascii()
    assert not any(character < " " for character in out.removesuffix("\n"))
    assert "\x1b" not in err


def test_a_lone_surrogate_in_a_completion_is_judged_as_the_replacement_character(judged):
    code, verdicts, _ = judged(b'{"completion": "x#\\ud800", "answer": "2", "id": "\\udfff", "pair": "\\ud83d\\ude00"}')
    found = {key: verdicts[0][key] for key in ("id", "pair", "status", "extracted_answer")}
    assert (code, found) == (
        0,
        {"id": "\udfff", "pair": "\U0001f600", "status": "unparseable", "extracted_answer": "\ufffd"},
    )


def test_a_line_of_five_megabytes_is_a_line_like_any_other(judged):
    long = "3+5=8;" * 850_000
    code, verdicts, _ = judged(CORRECT, {"completion": long + "#2", "answer": "2", "id": 1}, CORRECT)
    assert (code, [verdict["status"] for verdict in verdicts]) == (0, ["correct"] * 3)


def test_input_without_a_line_break_is_refused_before_it_fills_the_memory(tmp_path: Path):
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.write(b"{}\n")
        file.truncate(LONGEST_LINE + (1 << 20))
    with endless.open("rb", buffering=0) as file:
        batches = line_batches(file.fileno())
        assert next(batches) == [b"{}"]
        with pytest.raises(BadPair, match=r"^line 2: expected at most 67,108,864 bytes, got more"):
            next(batches)


def test_lines_come_whole_and_a_few_thousand_at_a_time(tmp_path: Path):
    lines = [b"%d" % i + b"x" * (i % 300) for i in range(20_000)]
    file = tmp_path / "lines"
    file.write_bytes(b"\n".join(lines))  # without a last line break
    with file.open("rb", buffering=0) as opened:
        batches = list(line_batches(opened.fileno()))
    assert [line for batch in batches for line in batch] == lines
    assert max(len(batch) for batch in batches) < 3 * MOST_LINES


# --- bad requests


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--verifier", "arithmetik"], "the nearest is 'arithmetic'"),
        (["--verifier", "arithmetic@9"], "write 'arithmetic@1'"),
        (["--verifier", "arithmetic", "--set", "seed=1"], "--set seed=1: expected a key of the section verification"),
        (["--verifier", "arithmetic", "--set", "verification.rewards.wrnog=1"], "verification.rewards.wrong"),
        (["--verifier", "arithmetic", "--input", "nowhere.jsonl"], "--input nowhere.jsonl: expected a file of JSON"),
        (["--verifier", "arithmetic", "--input", "."], "--input .: expected a file of JSON lines, but it is a folder"),
        (["--verifier", "arithmetic", "--output", "no/file"], "would stand in a folder that does not exist"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_before_anything_is_read(tempo: Tempo, monkeypatch, arguments, expected):
    def read(*_: Any) -> bytes:
        raise AssertionError("something was read")

    monkeypatch.setattr("os.read", read)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    code, out, err = tempo("verify", *arguments)
    assert (code, out) == (2, "")
    assert expected in err


# --- files


def test_an_output_file_has_every_verdict_or_stays_as_it_was(judged, tmp_path: Path):
    folder = tmp_path / "verdicts"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to("real.jsonl")
    target = folder / "link.jsonl"
    code, verdicts, err = judged(CORRECT, {"completion": "#3", "answer": "2"}, output=str(target))
    assert (code, verdicts) == (0, [])
    statuses = [json.loads(line)["status"] for line in (folder / "real.jsonl").read_text().splitlines()]
    assert statuses == ["correct", "wrong"]
    assert f'grep \'"status": "wrong"\' {target} | head' in err
    before = target.read_bytes()
    code, _, err = judged(CORRECT, b"nothing", output=str(target))
    assert code == 2
    assert f"{target} was not written: it would lack this verdict" in err
    assert target.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"link.jsonl", "real.jsonl"}
    assert judged(CORRECT, output="/dev/null")[0] == 0
    assert not Path("/dev/null").is_file()


# --- pipes


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start `tempo verify` with pipes; it is gone when the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **streams: Any) -> "subprocess.Popen[bytes]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        command = [sys.executable, "-c", "from flows.cli import run; run()", "verify", *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(SECONDS)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


def test_a_writer_that_waits_for_each_verdict_gets_it(start):
    process = start("--verifier", "arithmetic")
    for digit in ("2", "3", "2"):
        process.stdin.write(json.dumps({"completion": f"#{digit}", "answer": "2"}).encode() + b"\n")
        process.stdin.flush()  # and nothing more until its verdict is there
        assert json.loads(process.stdout.readline())["extracted_answer"] == digit
    process.stdin.write(b'{"completion": "#2", "ans')
    process.stdin.flush()
    process.stdin.write(b'wer": "2"}')  # the last line needs no line break
    process.stdin.close()
    assert json.loads(process.stdout.readline())["status"] == "correct"
    assert process.wait(SECONDS) == 0
    assert b"4 pairs judged by arithmetic@1" in process.stderr.read()


def test_an_unknown_verifier_does_not_wait_for_input(start):
    assert start("--verifier", "arithmetik").wait(SECONDS) == 2  # standard input is open and empty


def test_a_reader_that_goes_away_is_no_error(start):
    process = start("--verifier", "arithmetic")
    line = json.dumps(CORRECT).encode() + b"\n"
    process.stdin.write(line)
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    with pytest.raises(BrokenPipeError):  # verify has ended
        process.stdin.write(line * 100_000)
    with suppress(BrokenPipeError):
        process.stdin.close()
    assert (process.wait(SECONDS), process.stderr.read()) == (0, b"")


WITH_PEAK = """
import sys
from flows.cli import main
code = main(["verify", "--verifier", "arithmetic"])
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(peak, file=sys.stderr)
sys.exit(code)
"""
"""VmHWM is this process's own; ru_maxrss would begin at what the tests' process held when it started the other."""


def peak_memory_kb(pairs: Path, num_pairs: int, verdicts: Path) -> int:
    """Largest resident set of a `tempo verify` over so many lines of a pipe."""
    with pairs.open("rb") as source, verdicts.open("wb") as target:
        head = subprocess.Popen(["head", "-n", str(num_pairs)], stdin=source, stdout=subprocess.PIPE)
        command = [sys.executable, "-c", WITH_PEAK]
        done = subprocess.run(
            command, cwd=ROOT, stdin=head.stdout, stdout=target, stderr=subprocess.PIPE, timeout=SECONDS, check=True
        )
        head.stdout.close()
        head.wait(SECONDS)
    with verdicts.open("rb") as file:
        assert sum(1 for _ in file) == num_pairs
    return int(done.stderr.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, for a process's own peak memory")
def test_ten_times_the_pairs_take_the_same_memory(tmp_path: Path):
    pairs, verdicts = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    with pairs.open("w") as file:
        for i in range(100_000):
            completion = f"{i % 10}+{i % 7}={i % 9};" * 40 + f"#{i % 10}"
            file.write(json.dumps({"id": i, "completion": completion, "answer": str(i % 3)}) + "\n")
    assert pairs.stat().st_size > 25e6
    few, many = (peak_memory_kb(pairs, number, verdicts) for number in (10_000, 100_000))
    assert many < few + 3_000  # holding the lines would take 25 MB, their verdicts 15 MB
