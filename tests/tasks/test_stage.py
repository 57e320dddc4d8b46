"""A stage: computed once, found by what it was computed from, committed whole, and told about."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifact import Artifact, Part, Store
from storage.commit_log import read_events
from storage.fingerprint import NOT_IDENTITY
from tasks.stage import Context, DiskFull, Listener, Place, Run, Summary, stage


@dataclass(frozen=True)
class Settings:
    words: tuple[str, ...] = ("a", "b")
    error: str = ""
    folder: str = field(default="/here", metadata=NOT_IDENTITY)


class Witness(Listener):
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def stage_started(self, place: Place, stage: str) -> None:
        self.told.append(("started", place.title(stage)))

    def stage_progress(self, place: Place, stage: str, done: int, total: int) -> None:
        self.told.append(("progress", stage, done, total))

    def stage_finished(self, place: Place, stage: str, outcome: str, seconds: float, summary: Summary) -> None:
        assert seconds >= 0
        self.told.append(("finished", place.title(stage), outcome, summary))


CALLS: list[str] = []
"""The keys for which the stage of these tests has been computed."""


def compute(context: Context, *, config: Settings, source: Part | None = None) -> Summary:
    CALLS.append(context.key)
    context.progress(1, 2)
    words = [*config.words, *(source.read().column("text").to_pylist() if source else [])]
    context.staging.add_table("vocabulary", {"token_id": list(range(len(words))), "text": words})
    if config.error:
        raise {"disk": OSError(28, "No space left on device"), "value": ValueError("seven")}[config.error]
    return {"words": len(words), "tokens": 5, "call": len(CALLS)}


spell = stage("spell", version=1)(compute)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    store = Store(tmp_path)
    store.open_for_writing()
    return Run("demo", "a1", store, listener=Witness(), device="cpu")


def events(run: Run) -> list[dict[str, Any]]:
    return list(read_events(run.log))


def staged(run: Run) -> list[Path]:
    return list(run.store.staging_root.iterdir())


def test_a_stage_is_computed_once_and_then_found_with_its_contents_and_its_summary(run: Run):
    first = spell(run.at(1), config=Settings())
    second = spell(run.at(2), config=Settings())
    assert len(CALLS) == 1
    assert first == second
    assert second.part("vocabulary").read().column("text").to_pylist() == ["a", "b"]
    assert second.summary == {"words": 2, "tokens": 5, "call": 1}  # the stored one: nothing was computed anew
    assert [(e["step"], e["outcome"], e["key"] == CALLS[0], e["tokens"]) for e in events(run)] == [
        (1, "ran", True, 5),
        (2, "cached", True, 5),
    ]


def test_the_log_names_the_files_contents_inputs_and_place_of_a_stage(run: Run):
    source = spell(run.at(0), config=Settings())
    made = spell(run.at(3, "eval", "x"), config=Settings(words=("c",)), source=source.part("vocabulary"))
    event = events(run)[-1]
    place = {"run": "demo", "attempt": "a1", "step": 3, "purpose": "eval", "label": "x", "stage": "spell"}
    assert {key: event[key] for key in place} == place
    assert event["stage_version"] == 1
    assert event["error"] is None
    assert event["inputs"] == {"source": f"spell/{source.key}"}
    assert event["outputs"] == {"vocabulary": made.part("vocabulary").digest}
    assert (run.store.root / event["files"]["vocabulary"]) == made.part("vocabulary").path
    assert event["key_parts"]["config"] == {"config": {"error": "", "words": ["c"]}}
    assert event["key_parts"]["inputs"] == {"source": source.part("vocabulary").digest}


def key_of(run: Run, config: Settings | None = None, **identity: Any) -> str:
    return spell(run.at(1), config=config or Settings(), **identity).key


def test_the_key_changes_with_the_configuration_and_not_with_what_is_no_identity(run: Run):
    base = key_of(run)
    assert key_of(run, Settings(words=("a",))) != base
    assert key_of(run, Settings(folder="/elsewhere")) == base
    elsewhere = replace(run, name="other", attempt="a2", device="cuda", threads=9)
    assert key_of(elsewhere) == base
    assert spell(run.at(9, "eval", "label"), config=Settings()).key == base
    assert len(CALLS) == 2


def test_the_key_changes_with_the_contents_of_an_input_and_not_with_where_they_came_from(run: Run):
    one, two = (spell(run.at(0), config=Settings(words=words)) for words in (("x",), ("y",)))
    same = stage("another", version=1)(compute)(run.at(0), config=Settings(words=("x",)))
    keys = [key_of(run, source=artifact.part("vocabulary")) for artifact in (one, two, same)]
    assert same.key != one.key
    assert keys[0] == keys[2] != keys[1]


def test_the_key_changes_with_the_version_and_the_name_of_the_stage(run: Run):
    stages = [stage("spell", version=1), stage("spell", version=2), stage("other", version=1)]
    keys = [decorate(compute)(run.at(1), config=Settings()).key for decorate in stages]
    assert len(set(keys)) == 3
    assert len(CALLS) == 3


@pytest.mark.parametrize("value", [{1, 2}, Path("/tmp"), float("nan")])
def test_a_value_without_a_canonical_form_is_refused_and_nothing_is_computed(run: Run, value: object):
    with pytest.raises((TypeError, ValueError), match=r"^\$\.extra is "):
        spell(run.at(1), config=Settings(), extra=value)
    assert CALLS == []


def test_an_exception_commits_nothing_and_its_reason_is_in_the_log(run: Run):
    with pytest.raises(ValueError, match="seven"):
        spell(run.at(1), config=Settings(error="value"))
    (event,) = events(run)
    assert (event["outcome"], event["error"], event["files"]) == ("failed", "ValueError: seven", {})
    assert run.store.find("spell", event["key"]) is None
    assert staged(run) == []
    with pytest.raises(ValueError, match="seven"):
        spell(run.at(1), config=Settings(error="value"))
    assert len(CALLS) == 2  # a failure is not cached


def test_ctrl_c_commits_nothing_and_is_logged(run: Run):
    @stage("stopped", version=1)
    def stopped(context: Context) -> Summary:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(run.at(1))
    assert [(e["outcome"], e["error"]) for e in events(run)] == [("failed", "KeyboardInterrupt: ")]
    assert staged(run) == []


def test_a_summary_that_json_cannot_hold_commits_nothing(run: Run):
    @stage("nan", version=1)
    def nan(context: Context) -> Summary:
        return {"loss": float("nan")}

    with pytest.raises(ValueError, match=r"\$\.loss is nan: only finite floats"):
        nan(run.at(1))
    assert [e["outcome"] for e in events(run)] == ["failed"]
    assert staged(run) == []


def test_the_listener_is_told_of_the_start_the_progress_and_the_end(run: Run):
    spell(run.at(4, "eval", "hard"), config=Settings())
    spell(run.at(5), config=Settings())
    with pytest.raises(ValueError, match="seven"):
        spell(run.at(6), config=Settings(error="value"))
    summary = {"words": 2, "tokens": 5, "call": 1}
    assert isinstance(run.listener, Witness)
    assert run.listener.told == [
        ("started", "step 004 spell hard"),
        ("progress", "spell", 1, 2),
        ("finished", "step 004 spell hard", "ran", summary),
        ("started", "step 005 spell"),
        ("finished", "step 005 spell", "cached", summary),
        ("started", "step 006 spell"),
        ("progress", "spell", 1, 2),
    ]


def test_a_damaged_artifact_is_computed_again(run: Run):
    first = spell(run.at(1), config=Settings())
    os.truncate(first.part("vocabulary").path, 10)
    assert spell(run.at(1), config=Settings()).part("vocabulary").read().num_rows == 2
    assert [e["outcome"] for e in events(run)] == ["ran", "ran"]


# --- a full disk


REMEDY = (
    r"no space left on the disk of .*: the stage could not be stored; .* Free some space .* run the same command again"
)


def test_no_space_left_becomes_one_sentence_with_a_remedy(run: Run):
    with pytest.raises(DiskFull, match=REMEDY):
        spell(run.at(1), config=Settings(error="disk"))
    (event,) = events(run)
    assert event["outcome"] == "failed"
    assert event["error"].startswith("DiskFull: no space left")
    assert staged(run) == []


def test_a_log_that_cannot_grow_is_a_full_disk_too_and_the_artifact_is_found_the_next_time(run: Run, monkeypatch):
    def full(log: Path, event: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device", str(log))

    with monkeypatch.context() as patch:
        patch.setattr("tasks.call.append_event", full)
        with pytest.raises(DiskFull, match=REMEDY):
            spell(run.at(1), config=Settings())
        with pytest.raises(ValueError, match="seven"):  # the failure itself is told, not that it could not be logged
            spell(run.at(1), config=Settings(error="value"))
    assert spell(run.at(1), config=Settings()).summary["call"] == 1
    assert [e["outcome"] for e in events(run)] == ["cached"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, timeout=20)
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here: " + mounted.stderr.decode().strip())
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True, timeout=20)


@stage("noise", version=1)
def noise(context: Context, *, kib: int) -> Summary:
    """A table of random text: it does not shrink under compression, so the file is about `kib` KiB."""
    words = [np.random.default_rng(i).integers(0x4E00, 0x9E00, 512, np.int32) for i in range(kib)]
    text = ["".join(map(chr, word)) for word in words]  # 512 of 20,480 characters: 512 * 14.3 bits = 0.9 KiB of content
    context.staging.add_table("vocabulary", {"token_id": list(range(kib)), "text": text})
    return {}


def test_a_real_full_disk_keeps_every_earlier_stage_and_the_same_call_succeeds_once_there_is_space(small_disk: Path):
    store = Store(small_disk)
    store.open_for_writing()
    run = Run("demo", "a1", store)
    earlier: Artifact = spell(run.at(1), config=Settings())
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1792 * 1024))
    with pytest.raises(DiskFull, match=REMEDY):
        noise(run.at(2), kib=512)  # 2048 - 1792 = 256 KiB are left
    assert staged(run) == []
    assert spell(run.at(1), config=Settings()) == earlier
    assert earlier.part("vocabulary").read().column("text").to_pylist() == ["a", "b"]
    ballast.unlink()
    made = noise(run.at(2), kib=512)
    assert made.part("vocabulary").read().num_rows == 512
    assert made.num_bytes > 256 * 1024
    outcomes = [(e["stage"], e["outcome"]) for e in events(run)]
    assert outcomes == [("spell", "ran"), ("noise", "failed"), ("spell", "cached"), ("noise", "ran")]
