"""A policy's checkpoint as vLLM loads it in place: with its output head written out.

vLLM leaves the output head of a model with tied embeddings as it was when weights are reloaded, without an error: the
next samples then come from new layers under an old head. A checkpoint that says it is not tied, with the head as a
tensor of its own, has nothing to forget.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.engines.policy import Policy

HEAD = "lm_head.weight"
HEAD_FILE = "lm_head.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextmanager
def exported(policy: Policy, folder: Path, parent: str, *, dtype: str, copies: bool) -> Iterator[Path]:
    """The policy's checkpoint as engines load it, below `parent` ('': a temporary folder), gone after the block."""
    place = Path(tempfile.mkdtemp(prefix="tempo-weights-", dir=parent or None))
    try:
        export = export_checkpoint(policy, folder, place / "checkpoint", dtype=dtype, copies=copies)
        if copies:  # for servers, which may run as somebody else; whatever this process's umask is
            for path in (place, export, *export.iterdir()):
                path.chmod(0o755 if path.is_dir() else 0o644)
        yield export
    finally:
        shutil.rmtree(place, ignore_errors=True)


def export_checkpoint(policy: Policy, folder: Path, target: Path, *, dtype: str, copies: bool = False) -> Path:
    """A folder that vLLM can load: `folder` itself where its head is not tied, else `target`, filled here.

    `target` has the head in `dtype` as a file of its own beside links to the files of `folder`; with `copies` (for
    servers that see `target` and not `folder`) every tensor is written there in `dtype`.
    """
    is_tied = bool(getattr(policy.model.config, "tie_word_embeddings", False))
    if not is_tied and not copies:
        return folder.resolve()
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and file.name not in ("config.json", INDEX):
            _place(file, target / file.name, copies=copies)
    index: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = f"body-{file.name}"  # a model.safetensors would be read alone, without the index and so without the head
        with safe_open(file, "pt") as tensors:
            names = list(tensors.keys())
            if copies:
                converted = {name: tensors.get_tensor(name).to(DTYPES[dtype]) for name in names}
                save_file(converted, target / part, metadata={"format": "pt"})
        if not copies:
            _place(file, target / part, copies=False)
        index |= dict.fromkeys(names, part)
    if is_tied:
        head = policy.model.get_output_embeddings().weight.detach().to("cpu", DTYPES[dtype])
        save_file({HEAD: head.clone().contiguous()}, target / HEAD_FILE, metadata={"format": "pt"})
        index[HEAD] = HEAD_FILE
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=2), encoding="utf-8")
    return target


def _place(source: Path, target: Path, *, copies: bool) -> None:
    if copies:
        shutil.copyfile(source, target)
    else:
        os.symlink(source.resolve(), target)
