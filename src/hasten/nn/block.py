"""What blocks have beside torch's modules: a start that can be made again, names that decay spares, kept types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import nn

__all__ = ["undecayed"]


class Factory(TypedDict):
    """What torch's modules are made with."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class Block(nn.Module):
    """A module whose start can be made again, and that names parameters of its own which training shall not shrink.

    Names stay through a copy, storage that is made later (``to_empty``) and a state that is assigned. The parameters
    are marked too, by an attribute ``no_decay``, for code that sees them alone.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every parameter and statistic in it as at its start: after ``to_empty`` nothing else is needed."""
        reset_parts(self)
        self._start()

    def _start(self) -> None:
        """What differs from the start of its parts, and what no part holds."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._mark()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._mark()
        return self

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._mark()

    def _mark(self) -> None:
        for name in self.no_decay:
            parameter = self._parameters.get(name)
            if parameter is not None:
                parameter.no_decay = True  # type: ignore[attr-defined]


class PackedBlock(Block):
    """A block whose own tensors are codes and their scales: ``.float()``, ``.bfloat16()`` and ``.to`` move them to
    devices and leave their types, which the kernels read them by."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        def kept(tensor: torch.Tensor) -> Any:
            moved = fn(tensor)
            return moved if moved.dtype is tensor.dtype else tensor.to(moved.device)

        return super()._apply(kept, recurse)


def numbers_of(module: nn.Module) -> torch.Tensor:
    """A tensor of the device and dtype that a module's new tensors have, whatever its parts have become.

    Its first parameter of floats; fp32 on the device of its buffers where it has none.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter
    buffer = next(module.buffers(), None)
    return torch.empty(0, dtype=torch.float32, device=None if buffer is None else buffer.device)


def untouched(module: nn.Module) -> bool:
    """Whether a layer is torch's own ``Linear`` with no hook on it: its weight then says all that calling it does.

    Shortcuts that read a weight ask for it, so that wrappers (LoRA), packed layers and hooks are not gone around.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is nn.Linear and not any(hooks)


def reset_parts(module: nn.Module) -> None:
    """Resets every module within one, the innermost first."""
    for part in [*module.modules()][:0:-1]:
        reset: Any = getattr(part, "reset_parameters", None)
        if reset is not None:
            reset()


def undecayed(module: nn.Module) -> set[str]:
    """Names of all parameters in a module that weight decay leaves alone by what their modules' classes say.

    A class says so by an attribute ``no_decay``, names of its own parameters; of a parameter that several modules
    share, one that says so is enough.
    """
    held: set[int] = set()
    for part in module.modules():
        for name in getattr(type(part), "no_decay", ()):
            parameter = part._parameters.get(name)
            if parameter is not None:
                held.add(id(parameter))
    return {name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in held}
