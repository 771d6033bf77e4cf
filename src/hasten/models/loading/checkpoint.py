"""A model as a folder: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as encode
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.files import parse_json, read_bytes, write_aside

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(folder: str | Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Writes a model's state and configuration; each file whole or not at all.

    Raises:
        HastenError: a file cannot be written.
    """
    # Tied tensors are written twice: the format has no sharing, and readers expect every name.
    tensors = {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}
    write_aside(Path(folder) / WEIGHTS, encode(tensors), "the weights")
    write_aside(Path(folder) / CONFIG, json.dumps(dict(config), indent=2) + "\n", "the configuration")


def read_config(folder: str | Path) -> Any:
    """What a folder's ``config.json`` holds.

    Raises:
        HastenError: it is missing or no JSON.
    """
    path = Path(folder) / CONFIG
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise HastenError(f"{path} is not JSON: {error}") from None


def read_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder's ``model.safetensors``.

    Raises:
        HastenError: it is missing or broken.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise HastenError(f"cannot read {path}: no such file; weights load from safetensors alone")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise HastenError(f"{path} is not a whole safetensors file: {error}") from None


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Gives a model, on the meta device or not, its tensors.

    Raises:
        HastenError: a tensor is missing, unknown or of another shape than the model's.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        found = tensors.get(name)
        if found is None:
            raise HastenError(f"{where} has no tensor {name}: it holds another model")
        if found.shape != tensor.shape:
            raise HastenError(
                f"{name} is {tuple(found.shape)} in {where}, its config asks for {tuple(tensor.shape)}: "
                "the two files do not belong together"
            )
    if unknown := set(tensors) - set(expected):
        raise HastenError(f"{where} has a tensor {min(unknown)} that the model lacks: it holds another model")
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    model.load_state_dict(dict(tensors), assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted.get(name, True))
