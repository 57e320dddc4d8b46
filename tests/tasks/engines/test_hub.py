"""Datasets and checkpoints: what is found, and what is said when it is not."""

import json
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch

from tasks.core.arithmetic import CHARACTERS
from tasks.datasets import DATASETS, DatasetSource
from tasks.engines.hub import NotFound, find_checkpoint, has_split, load_rows, mirror_revision
from tasks.engines.policy import load_policy, make_tiny_policy, save_policy

HUB = Path(__file__).resolve().parents[4] / "shared" / "hub"
GSM8K = "openai/gsm8k"
needs_gsm8k = pytest.mark.skipif(not (HUB / GSM8K).is_dir(), reason=f"no mirror of {GSM8K} in {HUB}")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror with one dataset of two rows in one split."""
    folder = tmp_path / "hub" / "openai" / "gsm8k" / "main"
    folder.mkdir(parents=True)
    rows = [{"question": "1+1?", "answer": "1+1=2\n#### 2"}, {"question": "6*7?", "answer": "#### 42"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    readme = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train.jsonl\n---\n"
    (folder.parent / "README.md").write_text(readme)
    return tmp_path / "hub"


def gsm8k(split: str, hub_root: Path | None) -> DatasetSource:
    root = None if hub_root is None else str(hub_root)
    revision = DATASETS["gsm8k"].revision if root is None else mirror_revision(GSM8K, ("main",), root)
    return DatasetSource(dataset="gsm8k", split=split, revision=revision, arithmetic=None, hub_root=root)


@needs_gsm8k
def test_gsm8k_loads_from_a_folder_in_the_hub_layout() -> None:
    rows = load_rows(GSM8K, "main", "test", mirror_revision(GSM8K, ("main",), str(HUB)), str(HUB))
    assert rows[0]["question"].startswith("Janet")  # the first test problem: 16 - 3 - 4 = 9 eggs at $2
    example = gsm8k("test", HUB).examples()[0]
    assert (example.row_index, example.answer) == (0, "18")
    assert example.solutions == (rows[0]["answer"],)


def test_a_mirror_s_rows_become_examples(mirror: Path) -> None:
    examples = gsm8k("train", mirror).examples()
    assert [(e.row_index, e.question, e.answer) for e in examples] == [(0, "1+1?", "2"), (1, "6*7?", "42")]


def test_a_missing_mirror_is_named_with_its_remedy(mirror: Path) -> None:
    for ask in (
        lambda: load_rows("openai/gsm", "main", "train", "r", str(mirror)),
        lambda: mirror_revision("openai/gsm", ("main",), str(mirror)),
    ):
        with pytest.raises(NotFound, match="openai/gsm, which does not exist") as error:
            ask()
        assert "leave hub_root out to load from the Hub" in str(error.value)


@pytest.mark.parametrize(
    ("config", "split", "reason"), [("main", "test", 'Unknown split "test"'), ("plain", "train", "'plain' not found")]
)
def test_a_missing_split_or_configuration_is_named_with_its_remedy(
    mirror: Path, config: str, split: str, reason: str
) -> None:
    with pytest.raises(NotFound) as error:
        load_rows(GSM8K, config, split, "r", str(mirror))
    assert f"could not load the split {split!r} of openai/gsm8k from {mirror / GSM8K}" in str(error.value)
    assert reason in str(error.value)
    assert "Mirror that configuration and split too" in str(error.value)


def test_a_file_that_the_mirror_names_and_lacks_is_named_in_one_sentence(mirror: Path) -> None:
    (mirror / GSM8K / "main" / "train.jsonl").unlink()
    with pytest.raises(NotFound, match=r"Unable to find '.*main/train.jsonl'\. Mirror that configuration"):
        load_rows(GSM8K, "main", "train", "r", str(mirror))


def test_a_mirror_is_asked_for_a_split_without_reading_it(mirror: Path) -> None:
    assert has_split(GSM8K, "main", "train", str(mirror))
    assert not has_split(GSM8K, "main", "test", str(mirror))
    assert not has_split(GSM8K, "plain", "train", str(mirror))
    assert not has_split("openai/gsm", None, "train", str(mirror))
    (mirror / GSM8K / "main" / "train.jsonl").write_text("no JSON")
    assert has_split(GSM8K, "main", "train", str(mirror))


def test_a_damaged_mirror_is_no_traceback(mirror: Path) -> None:
    (mirror / GSM8K / "main" / "train.jsonl").write_text('{"question": "1+1?", "ans')
    with pytest.raises(NotFound, match=r"could not load the split 'train'.*JSON"):
        load_rows(GSM8K, "main", "train", "r", str(mirror))
    (mirror / GSM8K / "main" / "train.jsonl").write_text("")
    with pytest.raises(NotFound, match=r"could not load the split 'train'.*its files are empty.*Mirror that"):
        load_rows(GSM8K, "main", "train", "r", str(mirror))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1 does, which both libraries read only when they are imported; and nothing cached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_an_unreachable_hub_is_said_with_the_remedy() -> None:
    assert DATASETS["gsm8k"].revision.startswith("740312add88f")
    with pytest.raises(
        NotFound, match=r"from the Hub \(openai/gsm8k at 740312add88f\).*--hub-root FOLDER, .*--set hub_root=FOLDER"
    ):
        gsm8k("train", None).examples()
    with pytest.raises(NotFound, match=r"the Hub did not give nobody/nothing .*give its folder in place of the id"):
        find_checkpoint("nobody/nothing@abc123")


@pytest.mark.parametrize("policy", ["no-such-folder", "./owner/name", "a/b/c", "/nowhere/at-all", "~nobody/x"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(NotFound, match=r"no checkpoint folder .* no Hub id \(OWNER/NAME or OWNER/NAME@REVISION\)"):
        find_checkpoint(policy)


def test_a_revision_after_the_at_sign_is_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(make_tiny_policy(CHARACTERS, 0), tmp_path / "fetched")
    asked: list[tuple[str, str | None]] = []

    def fetch(hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((hub_id, revision))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pinned, latest = find_checkpoint("owner/name@0123abc"), find_checkpoint("owner/name")
    assert asked == [("owner/name", "0123abc"), ("owner/name", None)]
    assert pinned == latest == find_checkpoint(str(tmp_path / "fetched"))  # by content: the same weights are the same


def test_a_checkpoint_is_found_and_its_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        save_policy(make_tiny_policy(CHARACTERS, seed), tmp_path / name)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("not part of what it computes")
    folder, digest = find_checkpoint(str(tmp_path / "a"))
    assert load_policy(folder, digest, torch.device("cpu")).num_parameters == 445_056
    assert find_checkpoint(str(tmp_path / "copy"))[1] == digest
    assert find_checkpoint(str(tmp_path / "b"))[1] != digest


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_configuration_or_weights_is_no_checkpoint(tmp_path: Path, missing: str) -> None:
    save_policy(make_tiny_policy(CHARACTERS, 0), tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / missing).unlink()
    with pytest.raises(NotFound, match=r"no Hugging Face checkpoint: expected config.json and \*.safetensors") as e:
        find_checkpoint(str(tmp_path / "checkpoint"))
    assert "save one with model.save_pretrained(folder)" in str(e.value)


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="found neither"):
        find_checkpoint(str(tmp_path))


def test_the_revision_of_a_mirror_follows_its_bytes_and_not_its_place(mirror: Path, tmp_path: Path) -> None:
    original = mirror_revision(GSM8K, ("main",), str(mirror))
    shutil.copytree(mirror, tmp_path / "elsewhere")
    assert mirror_revision(GSM8K, ("main",), str(tmp_path / "elsewhere")) == original
    data = mirror / GSM8K / "main" / "train.jsonl"
    data.write_text(data.read_text().replace("6*7", "7*6"))
    changed = mirror_revision(GSM8K, ("main",), str(mirror))
    data.rename(data.with_name("other.jsonl"))
    assert len({original, changed, mirror_revision(GSM8K, ("main",), str(mirror))}) == 3
