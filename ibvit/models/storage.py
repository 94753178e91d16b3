"""Weights in a safetensors file with facts about them and a checksum."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ibvit import arguments
from ibvit.files import written_aside

_HEADER = "ibvit"  # the one key in the file's metadata: safetensors writes several in no fixed order


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors: of names, types, shapes and values, whatever file they lie in.

    Example:
        >>> fingerprint({"w": torch.zeros(2)})[:8], fingerprint({"w": torch.zeros(2, 1)})[:8]
        ('f03e39f8', '8ab6b380')
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} ".encode())
        add_tensor(digest, state[name])
    return digest.hexdigest()


def add_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Add a tensor's type, shape and values to a digest."""
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def save_weights(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, whole or not at all, with ``facts`` and the fingerprint in the file's header.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with written_aside(path) as partial:
        facts_json = json.dumps({**facts, "sha256": fingerprint(tensors)})
        try:
            save_file(tensors, partial, {_HEADER: f"{hashlib.sha256(facts_json.encode()).hexdigest()} {facts_json}"})
        except SafetensorError as error:  # its word for a full disk
            raise OSError(errno.EIO, arguments.one_line(error), str(path)) from error


def read_facts(path: Path) -> dict[str, Any]:
    """The facts in the header of a safetensors file, the fingerprint ("sha256") among them; none of a foreign file.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`; the tensors themselves are not checked.
    """
    return _read(path, "weights", tensors=False)[1]


def fingerprint_of(path: Path) -> str:
    """The fingerprint of the tensors in a file: as its header gives it, else computed.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_weights`.
    """
    return read_facts(path).get("sha256") or fingerprint(read_weights(path)[0])


def read_weights(path: Path, argument: str = "weights") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, on the CPU, and the facts in its header.

    Args:
        argument: what the caller's user calls the file, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole safetensors file, or its tensors are not those that were saved.
    """
    state, facts = _read(path, argument, tensors=True)
    if "sha256" in facts and facts["sha256"] != fingerprint(state):
        raise ValueError(f"{argument}: {path} is damaged: its tensors are not those that were saved")
    return state, facts


def _read(path: Path, argument: str, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{argument}: no file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_HEADER, "")
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = arguments.one_line(error)
        raise ValueError(f"{argument}: {path} is damaged or not a file of tensors ({reason})") from error
    digest, _, facts_json = header.partition(" ")
    if header and digest != hashlib.sha256(facts_json.encode()).hexdigest():
        raise ValueError(f"{argument}: {path} is damaged: its header is not the one that was saved")
    return state, json.loads(facts_json) if header else {}
