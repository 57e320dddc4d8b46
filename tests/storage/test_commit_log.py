"""The commit log: whatever is killed and whoever else writes, every whole event stays readable."""

import json
import os
from pathlib import Path

import pytest

from storage.commit_log import append_event, read_events

APPEND = """
import sys
from pathlib import Path
from storage.commit_log import append_event
print("ready", flush=True)
input()
for i in range(int(sys.argv[3])):
    append_event(Path(sys.argv[1]), {"writer": sys.argv[2], "i": i, "padding": "x" * 5000})
"""


def test_events_come_back_in_the_order_in_which_they_were_appended(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    for i in range(3):
        append_event(log, {"i": i, "text": "é\nline"})
    assert list(read_events(log)) == [{"i": i, "text": "é\nline"} for i in range(3)]
    assert log.read_bytes().count(b"\n") == 3  # one line per event: the newline in the text is escaped


def test_a_log_that_does_not_exist_has_no_events(tmp_path: Path):
    assert list(read_events(tmp_path / "log.jsonl")) == []


@pytest.mark.parametrize("length", range(1, len('{"i": 1}')))
def test_a_torn_last_line_is_skipped_and_does_not_swallow_the_next_event(tmp_path: Path, length: int):
    log = tmp_path / "log.jsonl"
    append_event(log, {"i": 0})
    with log.open("ab") as file:
        file.write(b'{"i": 1}'[:length])
    assert list(read_events(log)) == [{"i": 0}]
    append_event(log, {"i": 2})
    assert list(read_events(log)) == [{"i": 0}, {"i": 2}]


def test_a_whole_last_line_that_only_lacks_its_newline_is_kept(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"i": 1}')
    append_event(log, {"i": 2})
    assert list(read_events(log)) == [{"i": 1}, {"i": 2}]


def test_lines_that_are_no_objects_and_bytes_that_are_no_text_are_skipped(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'[1]\nnull\n\n\xff\xfe\n{"i": 1}\n')
    assert list(read_events(log)) == [{"i": 1}]


def test_a_message_with_bytes_of_a_file_name_that_is_no_text_is_logged_with_question_marks(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    append_event(log, {"error": "cannot read " + os.fsdecode(b"caf\xe9")})
    assert list(read_events(log)) == [{"error": "cannot read caf?"}]


def test_an_append_cut_short_by_a_full_disk_raises_and_leaves_no_torn_line(tmp_path: Path, monkeypatch):
    log = tmp_path / "log.jsonl"
    append_event(log, {"i": 0})
    write = os.write
    monkeypatch.setattr("storage.commit_log.os.write", lambda descriptor, line: write(descriptor, line[:4]))
    with pytest.raises(OSError, match="No space left on device"):
        append_event(log, {"i": 1})
    assert log.read_text() == '{"i": 0}\n'


def test_four_processes_that_append_at_once_lose_nothing_and_keep_their_own_order(tmp_path: Path, start):
    log, each = tmp_path / "log.jsonl", 25
    writers = [start(APPEND, str(log), str(w), str(each)) for w in range(4)]
    assert [writer.line() for writer in writers] == ["ready"] * 4
    for writer in writers:
        writer.go()
    assert [writer.wait() for writer in writers] == [0] * 4
    events = list(read_events(log))
    assert len(events) == 4 * each
    for w in range(4):
        assert [event["i"] for event in events if event["writer"] == str(w)] == list(range(each))
    assert all(json.loads(line)["padding"] == "x" * 5000 for line in log.read_text().splitlines())
