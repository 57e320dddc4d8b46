"""Dropped parts: an artifact is whole or dropped, never torn, whoever is killed; what comes back is what went."""

import json
import os
import signal
from pathlib import Path

import pytest

from storage.artifact import Artifact, Store

FILES = {"weights": "abc", "sub/config.json": "{}"}

MAKE = """
import os, signal, sys
from pathlib import Path
import storage.dropping
from storage.artifact import Artifact, Store

root, action, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = Store(root)
artifact = store.find("training", "k1")
done = 0

def counted(call):
    def before(*arguments, **keywords):
        global done
        if done == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return call(*arguments, **keywords)
    return before

def fill(folder):
    for file, text in {"weights": "abc", "sub/config.json": "{}"}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)

with store.staging("k1") as staging:
    for name in ("checkpoint", "optimizer"):
        fill(staging.path / name)
        staging.add_folder(name, staging.path / name)
    for name in ("rename", "unlink", "fsync", "rmdir"):  # killed before the nth of these calls
        setattr(os, name, counted(getattr(os, name)))
    if action == "drop":
        store.drop_parts(artifact, ["checkpoint", "optimizer"])
    else:
        store.restore_parts(artifact, staging, ["checkpoint", "optimizer"])
    os.kill(os.getpid(), signal.SIGTERM)  # not one of the instants: all of them have been seen
"""


def fill(folder: Path, files: dict[str, str]) -> None:
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)


@pytest.fixture
def policy(data_root, words) -> Artifact:
    with data_root.store.staging("k1") as staging:
        for name in ("checkpoint", "optimizer"):
            fill(staging.path / name, FILES)
            staging.add_folder(name, staging.path / name)
        staging.add_table("vocabulary", words("a"))
        return data_root.store.commit(staging, "training", "k1", {})


def restore(store: Store, artifact: Artifact, names: list[str], files: dict[str, str] = FILES) -> None:
    with store.staging("k1") as staging:
        for name in names:
            fill(staging.path / name, files)
            staging.add_folder(name, staging.path / name)
        store.restore_parts(artifact, staging, names)


def test_a_dropped_part_frees_its_bytes_and_its_artifact_is_found_with_everything_else(data_root, policy: Artifact):
    table = policy.part("vocabulary").path.stat().st_size
    assert policy.num_bytes == table + 2 * len("abc{}")
    data_root.store.drop_parts(policy, ["checkpoint"])
    found = data_root.store.find("training", "k1")
    assert found == policy
    assert found.dropped == {"checkpoint"}
    assert found.part("checkpoint").is_dropped
    assert not found.part("checkpoint").path.exists()
    assert found.part("checkpoint").digest == found.part("optimizer").digest  # same files: still known
    assert not found.part("optimizer").is_dropped
    assert found.num_bytes == table + len("abc{}")
    assert list(data_root.store.staging_root.iterdir()) == []


def test_parts_dropped_one_after_the_other_add_up_and_dropping_again_changes_nothing(data_root, policy: Artifact):
    for names in (["checkpoint"], ["optimizer"], ["checkpoint"], []):
        data_root.store.drop_parts(policy, names)
    assert policy.dropped == {"checkpoint", "optimizer"}
    assert json.loads((policy.path / "dropped.json").read_text()) == ["checkpoint", "optimizer"]


def test_a_rebuilt_part_comes_back_and_the_last_one_removes_the_marker(data_root, policy: Artifact):
    data_root.store.drop_parts(policy, ["checkpoint", "optimizer"])
    restore(data_root.store, policy, ["checkpoint"])
    assert policy.dropped == {"optimizer"}
    assert (policy.part("checkpoint").path / "sub" / "config.json").read_text() == "{}"
    restore(data_root.store, policy, ["optimizer"])
    assert not (policy.path / "dropped.json").exists()
    assert data_root.store.find("training", "k1") == policy


def test_a_part_rebuilt_with_other_contents_is_refused_with_both_digests_and_stays_dropped(data_root, policy):
    data_root.store.drop_parts(policy, ["checkpoint"])
    with pytest.raises(
        ValueError, match=rf"expected the digest {policy.part('checkpoint').digest}, got [0-9a-f]{{64}}"
    ):
        restore(data_root.store, policy, ["checkpoint"], FILES | {"weights": "abd"})
    assert policy.dropped == {"checkpoint"}
    assert not policy.part("checkpoint").path.exists()


def test_a_table_cannot_be_dropped_nor_a_part_that_is_not_there(data_root, policy: Artifact):
    with pytest.raises(ValueError, match="'vocabulary' of training/k1 is a table: only folders can go"):
        data_root.store.drop_parts(policy, ["checkpoint", "vocabulary"])
    with pytest.raises(KeyError, match="not 'rollouts'"):
        data_root.store.drop_parts(policy, ["rollouts"])
    assert policy.dropped == frozenset()


def test_absent_files_of_a_part_that_was_not_dropped_are_damage_all_the_same(data_root, policy: Artifact):
    data_root.store.drop_parts(policy, ["checkpoint"])
    (policy.part("optimizer").path / "weights").unlink()
    assert data_root.store.find("training", "k1") is None
    assert len(list((data_root.path / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("text", ["[", '{"checkpoint": 1}'])
def test_absent_files_beside_an_unreadable_marker_are_damage(data_root, policy: Artifact, text: str):
    data_root.store.drop_parts(policy, ["checkpoint"])
    (policy.path / "dropped.json").write_text(text)
    assert data_root.store.find("training", "k1") is None


@pytest.mark.parametrize("action", ["drop", "restore"])
def test_killed_before_any_of_its_system_calls_the_artifact_is_whole_or_dropped_and_a_second_try_ends_it(
    data_root, policy: Artifact, start, action: str
):
    instants = 0
    while True:
        if action == "restore":
            data_root.store.drop_parts(policy, ["checkpoint", "optimizer"])
        ended = start(MAKE, str(data_root.path), action, str(instants)).wait()
        found = data_root.store.find("training", "k1")
        assert found == policy
        for part in (found.part("checkpoint"), found.part("optimizer")):
            assert part.is_dropped or (part.path / "weights").read_text() == "abc"
        if action == "drop":
            data_root.store.drop_parts(policy, ["checkpoint", "optimizer"])
            assert not any(found.part(name).path.exists() for name in ("checkpoint", "optimizer"))
        restore(data_root.store, policy, ["checkpoint", "optimizer"])
        assert found.dropped == frozenset()
        assert {name: (found.part("optimizer").path / name).read_text() for name in FILES} == FILES
        if ended == -signal.SIGTERM:
            break
        assert ended == -signal.SIGKILL
        instants += 1
    assert instants > 5
    assert sorted(entry.name for entry in policy.path.iterdir()) == [
        "checkpoint",
        "manifest.json",
        "optimizer",
        "vocabulary.parquet",
    ]
    assert not os.path.exists(data_root.path / "quarantine")
