"""Whole models as experts: each a file of the weights in which it differs from a base, read over those in memory.

An expert is kept *merged*, as all weights that it has of its own, or as *low-rank* deltas, of which its weights are
made when it comes in: ``base + up @ down``. The page cache, or a drive behind it, is the large and slow tier; memory
that networks compute from is the fast one. Reading can be held to a rate, which `ExpertModels.throttle` tells.
"""

from __future__ import annotations

import math
import os
import time
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.files import make_folder, write_aside
from hasten.runtime.storage.tensor_file import TensorPlace, Throttle, tensor_places

Delta = Mapping[str, tuple[Tensor, Tensor]]
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_UP, _DOWN = ".up", ".down"
_AT_ONCE = 1 << 30  # bytes: Linux reads no more than 2^31 at a time


def expert_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that experts have of their own: those of all linear layers that are no table of tokens, by name."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in tables
    }


def random_delta(
    base: Mapping[str, Tensor], rank: int, seed: int, size: float = 0.02
) -> dict[str, tuple[Tensor, Tensor]]:
    """Low-rank changes of all weights: name -> (up, down), in fp32.

    Args:
        base: weights (out, in).
        rank: of each change.
        seed: of what is drawn.
        size: of a change beside its weight, by their Frobenius norms.

    Raises:
        HastenError: a rank below 1.
    """
    if rank < 1:
        raise HastenError(f"a change of rank {rank}: give at least 1")
    drawn = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in base.items():
        up = torch.randn(weight.shape[0], rank, generator=drawn)
        down = torch.randn(rank, weight.shape[1], generator=drawn)
        # The norm of a product of normal matrices is about the root of all its sizes' product.
        scale = size * float(weight.float().norm()) / (weight.numel() * rank) ** 0.5
        found[name] = (up * scale, down)
    return found


def write_expert(path: str | Path, base: Mapping[str, Tensor], delta: Delta, *, merged: bool = True) -> None:
    """Writes an expert, with a checksum of each tensor.

    Args:
        path: of the file.
        base: weights of the base.
        delta: what the expert changes of them: name -> (up, down).
        merged: write whole weights, in the format of the base; otherwise the deltas in theirs.

    Raises:
        HastenError: a change of what the base has not, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in delta.items():
        if name not in base or base[name].shape != (up.shape[0], down.shape[1]):
            raise HastenError(f"the base has no weight {name} of {up.shape[0]} x {down.shape[1]} to be changed")
        if merged:
            tensors[name] = _merged(base[name], up, down)
        else:
            tensors[name + _UP], tensors[name + _DOWN] = up.contiguous(), down.contiguous()
    sums = {name: str(_sum(tensor)) for name, tensor in tensors.items()}
    write_aside(Path(path), save(tensors, metadata=sums), "the expert")


def write_experts_of(
    base: Mapping[str, Tensor], folder: str | Path, count: int, *, rank: int = 8, seed: int = 0, merged: bool = True
) -> list[str]:
    """Writes ``count`` experts that differ from a base by random changes; their names."""
    where = make_folder(folder)
    names = [f"expert-{i:03}" for i in range(count)]
    for number, name in enumerate(names):
        delta = random_delta(base, rank, seed + number)
        write_expert(where / f"{name}.safetensors", base, delta, merged=merged)
    return names


def _merged(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (weight.float() + up.float() @ down.float()).to(weight.dtype)


def _sum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


class ExpertModels:
    """Experts in a folder, a file each.

    Args:
        folder: of what `write_expert` wrote.
        base: weights of the base, which low-rank experts are added to.
        bandwidth: B/s that bringing them in is held to; None for what the machine does.

    Raises:
        HastenError: no expert is there, or one is cut short, or has weights that the base has not.
    """

    def __init__(self, folder: str | Path, base: Mapping[str, Tensor], *, bandwidth: float | None = None) -> None:
        if bandwidth is not None and not 0 < bandwidth < float("inf"):
            raise HastenError(f"experts come in at {bandwidth:g} B/s: give a number above 0")
        self.folder, self.base, self.throttle = Path(folder), dict(base), Throttle(bandwidth)
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise HastenError(f"there is no expert in {folder}: write some (.safetensors)")
        self._files = {path.stem: _ExpertFile(path) for path in paths}
        for name, file in self._files.items():
            if strange := file.weights - self.base.keys():
                raise HastenError(f"expert {name} has {min(strange)}, which its base has not: write it again")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def nbytes(self, name: str) -> int:
        """That are read of an expert."""
        return self._file(name).nbytes

    def load(self, name: str, into: Mapping[str, Tensor]) -> None:
        """Brings an expert in: its weights are written over those of ``into``; what it does not change is the base's.

        What lies in memory afterwards is held against the checksums of the file.

        Args:
            name: of the expert.
            into: weights of a network, in the format of the base.

        Raises:
            HastenError: no such expert, no such weight in ``into``, or its file is damaged.
        """
        file = self._file(name)
        begun = time.perf_counter()
        for weight, target in into.items():
            if weight in file.places:
                file.copy(weight, target)
            elif weight + _UP in file.places:
                target.copy_(_merged(self.base[weight], file.tensor(weight + _UP), file.tensor(weight + _DOWN)))
            else:
                target.copy_(self.base[weight])
        if missing := file.weights - into.keys():
            raise HastenError(f"a network has no weight {min(missing)}, which expert {name} changes")
        self.throttle.wait(begun, file.nbytes)

    def _file(self, name: str) -> _ExpertFile:
        if name not in self._files:
            raise HastenError(f"there is no expert {name[:80]!r}: there are {', '.join(self._files)[:200]}")
        return self._files[name]


class _ExpertFile:
    """Tensors of a safetensors file that stays open: who takes its name away or puts another one there changes nothing.

    They are read, not mapped: a file that somebody writes over is cut short first, and a map of what is no longer there
    ends the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise HastenError(f"cannot read {path}: {error.strerror}") from None
        weakref.finalize(self, os.close, self._file)
        try:
            self.places, self._sums = tensor_places(self._file)
            if set(self._sums) != set(self.places):
                raise ValueError("a checksum is missing")
            for name, place in self.places.items():
                if place.dtype not in _TYPES or place.nbytes != _size(place):
                    raise ValueError(f"{name} has a wrong format or size")
        except (HastenError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HastenError(f"{path} is not a whole expert ({error}): write it again") from None
        self.nbytes = sum(p.nbytes for p in self.places.values())

    @property
    def weights(self) -> set[str]:
        """Names of the weights that it changes."""
        return {name.removesuffix(_UP).removesuffix(_DOWN) for name in self.places}

    def tensor(self, name: str) -> Tensor:
        """Held against its checksum."""
        place = self.places[name]
        found = torch.empty(place.shape, dtype=_TYPES[place.dtype])
        self._read(name, found)
        return found

    def copy(self, name: str, target: Tensor) -> None:
        """Reads a tensor over another, which is held against the checksum afterwards."""
        place = self.places[name]
        if place.shape != target.shape or _TYPES[place.dtype] != target.dtype:
            raise HastenError(f"{name} of {self.path} is no weight of this network: it has {tuple(target.shape)}")
        if target.is_contiguous() and target.device.type == "cpu":
            self._read(name, target)
        else:
            target.copy_(self.tensor(name))
            self._check(name, target)

    def _read(self, name: str, into: Tensor) -> None:
        place = self.places[name]
        left = into.detach().reshape(-1).view(torch.uint8).numpy().data
        try:
            while left and (done := os.preadv(self._file, [left[:_AT_ONCE]], place.begin + place.nbytes - len(left))):
                left = left[done:]
        except OSError as error:
            raise HastenError(f"cannot read {name} of {self.path}: {error.strerror}") from None
        if left:
            raise HastenError(f"{self.path} is cut short: write it again")
        self._check(name, into)

    def _check(self, name: str, tensor: Tensor) -> None:
        if str(_sum(tensor)) != self._sums[name]:
            raise HastenError(f"{name} in {self.path} is damaged: write the file again")


def _size(place: TensorPlace) -> int:
    return math.prod(place.shape) * _TYPES[place.dtype].itemsize
