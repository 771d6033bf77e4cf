"""Fake twins of real tensors: what tracing runs a program on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor as TorchTensor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hasten.errors import HastenError


class Fakes:
    """Fake twins of real tensors; tensors that share memory get twins that share a storage."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self._by_id: dict[int, TorchTensor] = {}
        self._by_storage: dict[int, list[tuple[TorchTensor, TorchTensor]]] = {}
        self._keep: list[TorchTensor] = []

    def is_mine(self, tensor: TorchTensor) -> bool:
        return isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode

    def of(self, real: TorchTensor) -> TorchTensor:
        """The twin of ``real`` on the CPU device."""
        if self.is_mine(real):
            return real
        known = self._by_id.get(id(real))
        if known is not None:
            return known
        self._keep.append(real)
        twin = self._shared(real)
        if twin is None:
            with self.mode, torch.no_grad():
                if real.layout is not torch.strided:
                    raise HastenError(f"cannot trace a {real.layout} tensor: make it dense first")
                twin = torch.empty_strided(tuple(real.shape), real.stride(), dtype=real.dtype, device="cpu")
            if not isinstance(real, FakeTensor):
                self._by_storage.setdefault(real.untyped_storage()._cdata, []).append((real, twin))
        self._by_id[id(real)] = twin
        return twin

    def _shared(self, real: TorchTensor) -> TorchTensor | None:
        if isinstance(real, FakeTensor) or real.layout is not torch.strided:
            return None
        for other, twin in self._by_storage.get(real.untyped_storage()._cdata, []):
            if other.dtype != real.dtype:
                continue
            start = real.storage_offset() - other.storage_offset()
            if start >= 0 and start + _extent(real) <= _extent(other):
                with self.mode, torch.no_grad():
                    return twin.as_strided(tuple(real.shape), real.stride(), start)
        return None


def _extent(tensor: TorchTensor) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


@contextmanager
def swapped(module: nn.Module | None, fakes: Fakes) -> Iterator[None]:
    """The module with fake twins for its parameters and buffers, put back afterwards."""
    if module is None:
        yield
        return
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for child in module.modules():
            tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)
            for table in tables:
                for key, tensor in list(table.items()):
                    if tensor is None:
                        continue
                    twin = fakes.of(tensor)
                    # torch folds a matmul's batch or not depending on whether a weight is trained.
                    if isinstance(tensor, nn.Parameter) and not isinstance(twin, nn.Parameter):
                        twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
                        fakes._by_id[id(tensor)] = twin
                    saved.append((table, key, tensor))
                    table[key] = twin
        yield
    finally:
        for table, key, tensor in reversed(saved):
            table[key] = tensor
