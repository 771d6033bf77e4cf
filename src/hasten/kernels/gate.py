"""The one gate between Python and compiled code: what is checked before an address goes there.

`sizes` and `dtypes` are asked at the head of every operator, whoever calls it: shapes that fit each other, one
device, plain strided tensors, the kinds of number that the operator takes. `address` and `rows_address` are the only
places that hand out addresses, and check device, dtype, shape and layout of that very tensor; `buffer` makes what a
kernel writes into, whatever torch's defaults are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hasten.errors import HastenError
from hasten.kernels.compiled import native

Named: TypeAlias = tuple[Tensor | None, str]

_LINE = 64
_HUGE_PAGE = 2 << 20
# Bytes from which on memory is asked for in huge pages.
LARGE = 2 * _HUGE_PAGE

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of this dtype are computed in: fp64 for fp64, fp32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def sizes(operator: str, known: dict[str, int] | None = None, /, **tensors: Named) -> dict[str, int]:
    """The size behind each letter of the tensors' shapes, which must agree.

    Args:
        operator: for messages.
        known: sizes that are given already; a number as a letter stands for itself.
        **tensors: name -> (tensor or None, its shape in letters, such as ``"b t c"``; ``...`` first for any others).

    Raises:
        ValueError: a shape of another rank or size, tensors on several devices or on none, or a layout that is not
            strided.
    """
    found = dict(known or {})
    device: torch.device | None = None
    for name, (tensor, letters) in tensors.items():
        if tensor is None:
            continue
        wanted = letters.split()
        shape = tuple(tensor.shape)
        if wanted[:1] == ["..."]:
            wanted = wanted[1:]
            shape = shape[max(0, len(shape) - len(wanted)) :]
        for letter, size in zip(wanted, shape):
            if not letter.isdigit():
                found.setdefault(letter, size)
        expected = tuple(int(w) if w.isdigit() else found.get(w, w) for w in wanted)
        if shape != expected:
            shown = "(" + ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "") + ")"
            raise ValueError(f"{operator}: {name} is {tuple(tensor.shape)}, not {shown}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{operator}: {name} is {tensor.layout}, it must be a plain (strided) tensor")
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, the others are on {device}")
    return found


def dtypes(operator: str, allowed: Iterable[torch.dtype], /, **tensors: Tensor | None) -> None:
    """That every tensor has one of these dtypes, and no tangent.

    Raises:
        ValueError: another dtype.
        HastenError: see `no_tangents`.
    """
    kinds = tuple(allowed)
    no_tangents(operator, *tensors.values())
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in kinds:
            names = ", ".join(str(k).removeprefix("torch.") for k in kinds)
            raise ValueError(f"{operator}: {name} is {str(tensor.dtype).removeprefix('torch.')}, it must be {names}")


def no_tangents(operator: str, /, *tensors: Tensor | None) -> None:
    """That no tensor has a tangent, which an operator would drop without a word.

    Functions ask for it before they call an operator, which is itself given tensors without them by ``torch.func.jvp``.

    Raises:
        HastenError: one has, for forward-mode derivatives are taken.
    """
    if forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise HastenError(f"{operator} has no forward-mode derivative: take the reverse mode (torch.autograd.grad)")


def once_differentiable(name: str) -> None:
    """Says of an operator that computes gradients that it has none itself, where torch would take them for zero.

    Args:
        name: such as ``hasten::rational_backward``.
    """

    _refuse_gradients(name, lambda: _no_second(name.removeprefix("hasten::").removesuffix("_backward")))


def _refuse_gradients(name: str, why: Callable[[], HastenError]) -> None:
    def refuse(ctx: Any, *grads: Any) -> Any:
        raise why()

    torch.library.register_autograd(name, refuse, setup_context=lambda ctx, inputs, output: None)


def _no_second(operator: str) -> HastenError:
    return HastenError(f"{operator} has no second derivative: differentiate it once, without create_graph")


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: str, count: int, *tensors: Tensor) -> Any:
        ctx.operator = operator
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise _no_second(ctx.operator)


def differentiated_once(operator: str, gradients: Sequence[Tensor], *sources: Tensor) -> tuple[Tensor, ...]:
    """The gradients that a function's backward has made, as what refuses to be differentiated again.

    torch's own ``once_differentiable`` is asked for nothing where gradients with respect to given tensors are, and
    gives zeros.

    Args:
        operator: for the message.
        gradients: made without a graph.
        sources: what they were made of.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    made: tuple[Tensor, ...] = _Once.apply(operator, len(gradients), *gradients, *sources)
    return made


def without_gradient(name: str) -> None:
    """Says of an operator that it has no gradient, where torch would warn and leave it out."""
    operator = name.removeprefix("hasten::")
    why = f"{operator} has no gradient: call it under torch.no_grad(), or detach what it is given"
    _refuse_gradients(name, lambda: HastenError(why))


def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of this processor for a kernel to write into, whatever torch's default dtype and device are."""
    made = torch.empty(shape, dtype=dtype, device="cpu")
    _ask_huge_pages(made, filled=False)
    return made


def whole_lines(size: int) -> int:
    """Bytes of the lines of a processor's cache that so many bytes take from the beginning of one."""
    return -(-size // _LINE) * _LINE


def room(size: int) -> Tensor:
    """So many bytes of this processor's memory, (size) uint8, from where a huge page begins if they are enough for it.

    What is read one after the other stands there side by side, and no part of it in small pages but the last.
    """
    if size < LARGE:
        return buffer(size, dtype=torch.uint8)
    made = torch.empty(size + _HUGE_PAGE, dtype=torch.uint8, device="cpu")
    start = -made.data_ptr() % _HUGE_PAGE
    made = made[start : start + size]
    _ask_huge_pages(made, filled=False)
    return made


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`buffer`, filled with zeros."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


def in_huge_pages(tensor: Tensor) -> Tensor:
    """The same tensor, for which the system was asked to move its memory into huge pages, if it is large and here.

    Weights that are read again and again are found with fewer look-ups of addresses there. Linux only; nothing happens
    to memory that is a file's.
    """
    _ask_huge_pages(tensor, filled=True)
    return tensor


def _ask_huge_pages(tensor: Tensor, filled: bool) -> None:
    size = tensor.nbytes
    if size < LARGE or tensor.device.type != "cpu" or type(tensor) is not Tensor or not tensor.is_contiguous():
        return
    module = native()
    if module is not None:
        module.ask_huge_pages(tensor.data_ptr(), size, filled)


def address(tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> int:
    """The address of a contiguous CPU tensor of this dtype and shape; 0 for None.

    Raises:
        ValueError: it is something else.
    """
    if tensor is None:
        return 0
    if tensor.device.type != "cpu" or tensor.dtype is not dtype or tuple(tensor.shape) != shape:
        raise ValueError(
            f"a kernel is given {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, it takes {shape} {dtype}"
        )
    if not tensor.is_contiguous():
        strides = tensor.stride()
        raise ValueError(f"a kernel is given strides {strides} for {tuple(tensor.shape)}, it takes contiguous ones")
    return tensor.data_ptr()


def rows(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """A tensor (batch, length, channels) whose rows lie at one distance, and that distance in elements.

    Parts of a wider projection stay where they are; anything else is copied. The stride of a dimension of size 1 may be
    any number, and is not looked at.
    """
    tensor = tensor.to(dtype)
    batch, length, channels = tensor.shape
    outer, middle, inner = tensor.stride()
    row = middle if length > 1 else outer if batch > 1 else channels
    fits = (channels == 1 or inner == 1) and row >= channels
    if fits and batch > 1 and length > 1:
        fits = outer == row * length
    return (tensor, row) if fits else (tensor.contiguous(), channels)


def rows_address(tensor: Tensor | None, row: int, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """The address of what `rows` gave; 0 for None.

    Raises:
        ValueError: another dtype or shape, or rows that end outside of the tensor's memory.
    """
    if tensor is None:
        return 0
    if tensor.device.type != "cpu" or tensor.dtype is not dtype or tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"a kernel is given {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, it takes {shape} {dtype}"
        )
    batch, length, channels = shape
    last = tensor.storage_offset() + (batch * length - 1) * row + channels
    if row < channels or last * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"rows of {channels} at a distance of {row} end outside of the tensor's memory")
    return tensor.data_ptr()


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `torch.library.register_fake`, for an operator that refuses tensors on several devices."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            devices = {a.device for a in (*args, *options.values()) if isinstance(a, Tensor)}
            if len(devices) > 1:
                found = " and ".join(sorted(map(str, devices)))
                raise ValueError(f"{name}: tensors are on {found}, not on one device")
            return function(*args, **options)

        torch.library.register_fake(name)(checked)
        return function

    return register
