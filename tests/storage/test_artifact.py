"""Artifacts: visible whole or not at all, whoever is killed, wherever the disk ends, whoever else writes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.artifact import MANIFEST, Artifact, Staging

WRITE = """
import os, signal, sys
from pathlib import Path
import storage.artifact
from storage.artifact import Store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

root, when = Path(sys.argv[1]), sys.argv[2]
store = Store(root)
with store.staging("k1") as staging:
    staging.add_table("vocabulary", {"token_id": [0, 1], "text": ["a", "b"]})
    if when == "before the manifest":
        die()
    if when == "after the manifest, before the rename":
        os.rename = die
    if when == "when asked":
        print("staged", flush=True)
        input()
    store.commit(staging, "stage", "k1", {})
    if when == "after the rename, before the log":
        die()
"""
BEFORE = ["before the manifest", "after the manifest, before the rename"]


def staging_folders(root: Path) -> list[Path]:
    return list((root / "artifacts" / ".staging").iterdir())


def test_a_result_is_invisible_until_its_commit_and_whole_after_it(data_root, words):
    store = data_root.store
    with store.staging("k1") as staging:
        staging.add_table("vocabulary", words("a", "b"))
        staging.summary = {"words": 2}
        assert store.find("stage", "k1") is None
        committed = store.commit(staging, "stage", "k1", {"why": 1})
    found = store.find("stage", "k1")
    assert found == committed
    assert found.part("vocabulary").read().to_pydict() == {"token_id": [0, 1], "text": ["a", "b"]}
    assert found.summary == {"words": 2}
    assert found.manifest["key_parts"] == {"why": 1}
    assert found.tables == ["vocabulary"]
    assert found.num_bytes == found.part("vocabulary").path.stat().st_size
    assert staging_folders(data_root.path) == []


def test_a_block_that_ends_without_a_commit_or_by_an_exception_leaves_nothing(data_root, words):
    with data_root.store.staging("k1") as staging:
        staging.add_table("vocabulary", words("a"))
    with pytest.raises(KeyboardInterrupt), data_root.store.staging("k1"):
        raise KeyboardInterrupt
    assert data_root.store.find("stage", "k1") is None
    assert staging_folders(data_root.path) == []


@pytest.mark.parametrize("when", BEFORE)
def test_a_writer_killed_before_the_rename_leaves_only_staging_which_the_next_writer_sweeps(data_root, start, when):
    assert start(WRITE, str(data_root.path), when).wait() == -signal.SIGKILL
    assert data_root.store.find("stage", "k1") is None
    (left,) = staging_folders(data_root.path)
    assert (left / MANIFEST).exists() == (when == BEFORE[1])
    data_root.store.open_for_writing()
    assert staging_folders(data_root.path) == []


def test_a_writer_killed_after_the_rename_leaves_a_whole_artifact_although_the_log_does_not_know_it(data_root, start):
    assert start(WRITE, str(data_root.path), "after the rename, before the log").wait() == -signal.SIGKILL
    found = data_root.store.find("stage", "k1")
    assert found.part("vocabulary").read().column("text").to_pylist() == ["a", "b"]
    assert not data_root.log_file.exists()
    assert staging_folders(data_root.path) == []


def test_the_staging_of_a_living_writer_is_left_alone_and_that_of_one_killed_is_swept(data_root, start):
    writer = start(WRITE, str(data_root.path), "when asked")
    assert writer.line() == "staged"
    data_root.store.open_for_writing()
    (folder,) = staging_folders(data_root.path)
    assert (folder / "vocabulary.parquet").exists()
    writer.kill()
    data_root.store.open_for_writing()
    assert staging_folders(data_root.path) == []


def test_what_others_put_into_the_staging_folder_is_left_alone(data_root):
    stray = data_root.store.staging_root / ".DS_Store"
    stray.write_text("x")
    data_root.store.open_for_writing()
    assert stray.exists()


def test_of_two_processes_that_commit_one_key_at_once_one_wins_and_both_succeed(data_root, start):
    writers = [start(WRITE, str(data_root.path), "when asked") for _ in range(2)]
    assert [writer.line() for writer in writers] == ["staged", "staged"]
    for writer in writers:
        writer.go()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert data_root.store.find("stage", "k1").part("vocabulary").read().num_rows == 2
    assert staging_folders(data_root.path) == []


def test_the_second_to_commit_a_key_gets_the_first_ones_artifact(data_root, words):
    store = data_root.store
    with store.staging("k1") as first, store.staging("k1") as second:
        first.summary, second.summary = {"writer": 1}, {"writer": 2}
        for staging in (first, second):
            staging.add_table("vocabulary", words("a"))
        assert store.commit(first, "stage", "k1", {}).summary == {"writer": 1}
        assert store.commit(second, "stage", "k1", {}).summary == {"writer": 1}


def cut(artifact: Artifact) -> None:
    path = artifact.part("vocabulary").path
    os.truncate(path, path.stat().st_size - 1)


def delete(artifact: Artifact) -> None:
    artifact.part("vocabulary").path.unlink()


def cut_manifest(artifact: Artifact) -> None:
    os.truncate(artifact.path / MANIFEST, 40)


def delete_manifest(artifact: Artifact) -> None:
    (artifact.path / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [cut, delete, cut_manifest, delete_manifest])
def test_a_damaged_artifact_is_set_aside_as_evidence_and_made_anew(
    data_root, words, damage: Callable[[Artifact], None]
):
    damage(data_root.commit("k1", vocabulary=words("a", "b")))
    assert data_root.store.find("stage", "k1") is None
    (evidence,) = (data_root.path / "quarantine").iterdir()
    assert evidence.name.startswith("stage-k1-")
    assert data_root.store.find("stage", "k1") is None  # a plain miss now: nothing more is set aside
    assert len(list((data_root.path / "quarantine").iterdir())) == 1
    data_root.commit("k1", vocabulary=words("a", "b"))
    assert data_root.store.find("stage", "k1").part("vocabulary").read().num_rows == 2


def test_a_damaged_artifact_that_another_process_sets_aside_first_is_a_miss(data_root, words, monkeypatch):
    artifact = data_root.commit("k1", vocabulary=words("a"))
    cut(artifact)
    rename = os.rename

    def other_process_first(source: Path, target: Path) -> None:
        rename(source, f"{target}-other")
        rename(source, target)

    monkeypatch.setattr("storage.artifact.os.rename", other_process_first)
    assert data_root.store.find("stage", "k1") is None


def test_a_part_that_is_not_there_is_an_error_that_names_those_that_are(data_root, words):
    with pytest.raises(KeyError, match=r"stage/k1 has the parts \['vocabulary'\], not 'rollouts'"):
        data_root.commit("k1", vocabulary=words("a")).part("rollouts")


def test_the_manifest_is_json_with_the_sha256_and_size_of_every_file(data_root, words):
    artifact = data_root.commit("k1", vocabulary=words("a"))
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    file = manifest["parts"]["vocabulary"]["files"]["vocabulary.parquet"]
    assert file["bytes"] == artifact.part("vocabulary").path.stat().st_size
    assert len(file["sha256"]) == 64
    assert manifest["parts"]["vocabulary"]["rows"] == 1


# --- folders


def folder_digest(data_root, files: dict[str, str], name: str = "checkpoint") -> str:
    with data_root.store.staging("k") as staging:
        write(staging, name, files)
        staging.add_folder(name, staging.path / name)
        return str(staging.parts[name]["digest"])


def write(staging: Staging, folder: str, files: dict[str, str]) -> None:
    for file, text in files.items():
        path = staging.path / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_digest_of_a_folder_is_that_of_its_files_names_and_bytes(data_root):
    base = {"config.json": "{}", "sub/weights": "abc"}
    same = folder_digest(data_root, base)
    assert folder_digest(data_root, dict(reversed(base.items()))) == same  # the order of writing is not seen
    assert folder_digest(data_root, base, name="tokenizer") == same  # nor is the folder's own name
    changed = [
        base | {"sub/weights": "abd"},
        base | {"sub/weights": ""},
        {"config.json": "{}", "weights": "abc"},
        {"config.json": "{}"},
        base | {"more": ""},
        {"config.json": "abc", "sub/weights": "{}"},
    ]
    assert len({same, *(folder_digest(data_root, files) for files in changed)}) == 1 + len(changed)


def test_a_folder_and_a_table_share_an_artifact_and_a_cut_file_in_the_folder_is_damage(data_root, words):
    store = data_root.store
    with store.staging("k1") as staging:
        write(staging, "checkpoint", {"sub/weights": "abc", "config.json": "{}"})
        staging.add_folder("checkpoint", staging.path / "checkpoint")
        staging.add_table("vocabulary", words("a"))
        artifact = store.commit(staging, "stage", "k1", {})
    assert artifact.tables == ["vocabulary"]
    assert (artifact.part("checkpoint").path / "sub" / "weights").read_text() == "abc"
    assert store.find("stage", "k1") == artifact
    os.truncate(artifact.part("checkpoint").path / "sub" / "weights", 2)
    assert store.find("stage", "k1") is None
