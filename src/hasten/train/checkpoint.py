"""A training on disk, in one safetensors file: weights, the optimizer's state, generators, and how far it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.files import checked_file, parse_json, write_aside


@dataclass
class Checkpoint:
    """The file of one training.

    Args:
        path: of the file; what is there before the first `save` is another run's of the same training.
        module, optimizer: what is trained, and by what.
        average: of the module, or None.
        generators: of everything random beside torch's own generator of the CPU, which is kept too.
    """

    path: Path
    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    generators: Sequence[torch.Generator] = ()

    def save(self, progress: dict[str, Any]) -> None:
        """Writes all of it, aside first.

        Args:
            progress: numbers and lists, as JSON holds them.

        Raises:
            HastenError: the file cannot be written, or the optimizer keeps what JSON and tensors cannot hold.
        """
        state = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {"generator": torch.get_rng_state()}
        for number, generator in enumerate(self.generators):
            tensors[f"generator.{number}"] = generator.get_state()
        tensors |= {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        try:
            told = json.dumps({"progress": progress, "groups": state["param_groups"], "plain": plain})
        except TypeError:
            raise HastenError(
                f"{type(self.optimizer).__name__} keeps what a checkpoint cannot hold: train without one"
            ) from None
        # Copies: safetensors takes neither views nor tensors that share memory, such as tied weights.
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_aside(self.path, save(whole, {"training": told}), "checkpoint")

    def load(self) -> dict[str, Any] | None:
        """Brings module, optimizer, average and generators to where the file has them; its ``progress``.

        Returns:
            None where there is no file yet.

        Raises:
            HastenError: the file cannot be read, or is of another training.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(checked_file(self.path, "the checkpoint", 0), "pt") as file:
                told = parse_json((file.metadata() or {})["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            raise HastenError(f"{self.path} is not a training's checkpoint: delete it or name another file") from None
        state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in told["plain"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        groups = [
            {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
            for group in told["groups"]
        ]
        try:
            self.module.load_state_dict(_under("module.", tensors))
            if self.average is not None:
                self.average.load_state_dict(_under("average.", tensors))
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            for number, generator in enumerate(self.generators):
                generator.set_state(tensors[f"generator.{number}"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise HastenError(
                f"{self.path} is of another training ({reason}): delete it or name another file"
            ) from None
        torch.set_rng_state(tensors["generator"])
        return dict(told["progress"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
