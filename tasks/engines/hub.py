"""Datasets and checkpoints: from the Hub by pinned revision, or from a folder that mirrors its layout."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files of a checkpoint that decide what it computes (weights, configuration, tokenizer, chat template)."""


class NotFound(ValueError):
    """A dataset or checkpoint is not where the experiment says."""


def load_rows(hub_id: str, config: str | None, split: str, revision: str, hub_root: str | None) -> Any:
    """The split as a `datasets.Dataset`: from `hub_root`/hub_id when that is given, else from the Hub at `revision`.

    `datasets` keeps what it has read by the dataset's name and the patterns of its files. So that a mirror that has
    changed, or another one, is read anew, each `revision` of a mirror (`mirror_revision`) has a cache of its own.
    Raises NotFound when the folder or the split does not exist, or the Hub cannot be reached.
    """
    import datasets

    datasets.disable_progress_bars()
    for logger in ("huggingface_hub", "datasets", "fsspec"):
        logging.getLogger(logger).setLevel(logging.ERROR)  # retries are theirs to make, the one message ours to give
    if hub_root is not None:
        where = str(_mirror(hub_id, hub_root))
        cache = Path(datasets.config.HF_DATASETS_CACHE) / revision.replace(":", "-")
        source: dict[str, Any] = {"path": where, "cache_dir": str(cache)}
        remedy = (
            "Mirror that configuration and split too, and the dataset's README.md, which may say where they are, or "
            "leave hub_root out to load from the Hub"
        )
    else:
        where = f"the Hub ({hub_id} at {revision[:12]})"
        source = {"path": hub_id, "revision": revision}
        remedy = (
            "Offline, mirror the dataset's folder (OWNER/NAME with its files) and name the folder that holds it with "
            "--hub-root FOLDER, which is --set hub_root=FOLDER"
        )
    try:
        return datasets.load_dataset(**source, name=config, split=split)
    except (ValueError, OSError, StopIteration, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).rstrip(".")  # DatasetGenerationError says only that there was an error
        if isinstance(error, StopIteration):  # that of the first row
            reason = "its files are empty"
        reason = reason.partition(" with any supported extension")[0]  # 200 of them follow
        raise NotFound(f"could not load the split {split!r} of {hub_id} from {where}: {reason}. {remedy}") from None


def _mirror(hub_id: str, hub_root: str) -> Path:
    folder = Path(hub_root) / hub_id
    if not folder.is_dir():
        raise NotFound(
            f"hub_root: expected the dataset {hub_id} in the folder {folder}, which does not exist; give the "
            "folder that holds the Hub's layout (OWNER/NAME/...), or leave hub_root out to load from the Hub"
        )
    return folder


def has_split(hub_id: str, config: str | None, split: str, hub_root: str) -> bool:
    """Whether a mirror has files for the split of that configuration. Reads no row."""
    import datasets

    folder = Path(hub_root) / hub_id
    if not folder.is_dir():
        return False
    try:
        files = datasets.load_dataset_builder(str(folder), name=config).config.data_files or {}
    except (ValueError, OSError, datasets.exceptions.DatasetsError):
        return False
    return bool(files.get(split))


def mirror_revision(hub_id: str, configs: Sequence[str], hub_root: str) -> str:
    """`local:` and 16 digits of the digest of a mirrored dataset's data files: a mirror may hold only some rows.

    Where configurations have folders of their own, those folders count. Raises NotFound when the dataset's does not
    exist.
    """
    folder = _mirror(hub_id, hub_root)
    sha = hashlib.sha256()
    for inside in [folder / config for config in configs if (folder / config).is_dir()] or [folder]:
        for file in sorted(inside.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    digest = hashlib.file_digest(handle, "sha256").hexdigest()
                sha.update(f"{file.relative_to(inside)}:{digest};".encode())
    return f"local:{sha.hexdigest()[:16]}"


def find_checkpoint(policy: str) -> tuple[Path, str]:
    """The folder of a checkpoint (downloaded when it is a Hub id, ID@REVISION pins one) and the digest of its files.

    Raises NotFound for a folder without config.json or weights, and for a Hub id that cannot be fetched.
    """
    folder = Path(policy).expanduser()
    if not folder.is_dir():
        folder = _download(policy)
    files = sorted({file for pattern in CHECKPOINT_FILES for file in folder.glob(pattern)})
    names = {file.name for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise NotFound(
            f"policy: {folder} is no Hugging Face checkpoint: expected config.json and *.safetensors, found "
            f"{', '.join(sorted(names)) or 'neither'}; save one with model.save_pretrained(folder) and "
            "tokenizer.save_pretrained(folder)"
        )
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            sha.update(f"{file.name}:{hashlib.file_digest(handle, 'sha256').hexdigest()};".encode())
    return folder, sha.hexdigest()


def _download(policy: str) -> Path:
    hub_id, _, revision = policy.partition("@")
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise NotFound(
            f"policy: no checkpoint folder {policy!r}, and it is no Hub id (OWNER/NAME or OWNER/NAME@REVISION) either; "
            f"the current folder is {os.getcwd()}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision or None, allow_patterns=list(CHECKPOINT_FILES)))
    except Exception as error:
        raise NotFound(
            f"policy: no folder {policy!r} here, and the Hub did not give {hub_id} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}). Offline, download the checkpoint elsewhere and give its "
            "folder in place of the id"
        ) from None
