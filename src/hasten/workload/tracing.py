"""Tracing: what a torch program computes, found by running it on fake tensors.

Nothing is computed and no parameter is materialised: a tensor is its shape, dtype and storage identity. So
views cost nothing, an in-place operator writes where its argument lives, and tied weights are one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor as TorchTensor
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_flatten, tree_unflatten

from hasten.errors import HastenError
from hasten.workload.dispatch import Functions, Tracer
from hasten.workload.einsum import Cascade, Phase, Role, Tensor, Workload
from hasten.workload.experts import static_experts
from hasten.workload.fakes import Fakes, swapped
from hasten.workload.recorder import Recorder


@contextmanager
def _module_paths(module: nn.Module | None, recorder: Recorder) -> Iterator[None]:
    """Keeps ``recorder.path`` at the module that is running."""
    if module is None:
        yield
        return
    paths = {id(child): name for name, child in module.named_modules()}
    stack: list[str] = []

    def enter(child: nn.Module, args: Any) -> None:
        stack.append(recorder.path)
        recorder.path = paths.get(id(child), recorder.path)

    def leave(child: nn.Module, args: Any, output: Any) -> None:
        recorder.path = stack.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """torch.nn.MultiheadAttention without its fused inference path, which hides what it computes."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class Traced(NamedTuple):
    """One traced call.

    Args:
        cascade: what it computes.
        weights: bytes of every parameter and buffer of the module, by name, tied ones once.
        state: bytes of every state tensor, by name.
    """

    cascade: Cascade
    weights: dict[str, int]
    state: dict[str, int]


def trace_cascade(
    target: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    module: nn.Module | None = None,
    state: Mapping[str, TorchTensor] | Callable[[Mapping[str, Any]], Mapping[str, TorchTensor]] | None = None,
    prepare: Callable[[], tuple[Sequence[Any], Mapping[str, Any]]] | None = None,
    within: Callable[[Tracer], AbstractContextManager[Any]] | None = None,
) -> Traced:
    """What one call of ``target`` computes.

    Args:
        target: a module, or any function that calls modules.
        args, kwargs: its arguments; tensors in them become inputs ``input0``, ``input1``, ... in order
            (keyword arguments under their own names).
        module: whose parameters are the weights, under their names in ``named_parameters()``; by default
            ``target`` itself, or the module that it is a method of.
        state: tensors that outlive the call, by name (they may be on the meta device); or a function that
            is given the keyword arguments and returns them.
        prepare: makes (args, kwargs) instead, on fake tensors: for caches too large to allocate.
        within: a context for the whole call, ``prepare`` included, which is given the tracer: it may bind further
            state, or let something stand in for a part of the module.

    Returns:
        The cascade with the bytes of weights and state. Operators that hasten does not know are in
        ``Cascade.unknown``.

    Raises:
        HastenError: the program's shapes depend on values (``nonzero``, ``item``), or an operator has no
            fake implementation.
    """
    if module is None:
        owner = target if isinstance(target, nn.Module) else getattr(target, "__self__", None)
        module = owner if isinstance(owner, nn.Module) else None
    recorder = Recorder()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = Fakes(mode)
    tracer = Tracer(recorder, fakes)
    with ExitStack() as stack:
        stack.enter_context(static_experts(module))
        stack.enter_context(swapped(module, fakes))
        if module is not None:
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                recorder.bind(tensor, name, Role.WEIGHT)
        stack.enter_context(torch.no_grad())
        if within is not None:
            stack.enter_context(within(tracer))
        if prepare is not None:
            with mode:
                args, kwargs = prepare()
        kwargs = dict(kwargs or {})
        for name, tensor in dict(state(kwargs) if callable(state) else state or {}).items():
            recorder.bind(fakes.of(tensor), name, Role.STATE, tensor.shape)
        fake_args = [_fake_input(a, f"input{i}", fakes, recorder) for i, a in enumerate(args)]
        fake_kwargs = {k: _fake_input(v, k, fakes, recorder) for k, v in kwargs.items()}
        stack.enter_context(_plain_attention())
        stack.enter_context(_module_paths(module, recorder))
        stack.enter_context(mode)
        stack.enter_context(tracer)
        stack.enter_context(Functions(tracer))
        try:
            result = target(*fake_args, **fake_kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise HastenError(
                f"cannot trace {_called(target)}: {error} makes shapes depend on values "
                f"(in module {recorder.path or 'forward'!r}): rewrite that part with fixed shapes"
            ) from error
        except UnsupportedOperatorException as error:
            raise HastenError(
                f"cannot trace {_called(target)}: operator {error} has no fake implementation: "
                "add one with torch.library.register_fake"
            ) from error
    cascade = recorder.cascade(_tensors(result))
    weights = {} if module is None else weight_bytes(module, recorder.tensors)
    return Traced(cascade, weights, {t.name: t.nbytes for t in recorder.tensors.values() if t.role is Role.STATE})


def _called(target: Any) -> str:
    return type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", "the function")


def _tensors(result: Any) -> list[TorchTensor]:
    """Tensors of a result; objects such as a cache inside a model's output are not results."""
    leaves = tree_flatten(dict(result) if isinstance(result, Mapping) else result)[0]
    return [t for t in leaves if isinstance(t, TorchTensor)]


def _fake_input(value: Any, name: str, fakes: Fakes, recorder: Recorder) -> Any:
    leaves, spec = tree_flatten(value)
    many = sum(isinstance(leaf, TorchTensor) for leaf in leaves) > 1
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, TorchTensor):
            leaves[i] = fakes.of(leaf)
            recorder.bind(leaves[i], f"{name}.{i}" if many else name, Role.INPUT)
    return tree_unflatten(leaves, spec)


def weight_bytes(module: nn.Module, described: Mapping[str, Tensor] | None = None) -> dict[str, int]:
    """Bytes of every parameter and buffer of ``module`` by name, tied ones once.

    Args:
        described: tensors by name that are not what their torch dtype says (int4 codes).
    """
    found: dict[str, int] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        known = (described or {}).get(name)
        found[name] = known.nbytes if known else tensor.numel() * tensor.element_size()
    return found


def trace(module: nn.Module, *inputs: Any, name: str = "", **kwargs: Any) -> Workload:
    """What one forward pass of ``module`` computes, as a workload with the one phase ``forward``.

    Args:
        module: any torch module, real or on the meta device; it is left as it was.
        name: of the workload; the class name when empty.
        inputs, kwargs: arguments of its ``forward``; only the tensors' shapes and dtypes matter.

    Returns:
        A workload whose weights are the module's parameters and buffers.

    Raises:
        HastenError: see `trace_cascade`.

    >>> work = trace(nn.Linear(8, 4), torch.zeros(2, 8))
    >>> work.flops
    128
    """
    cascade, weights, state = trace_cascade(module, inputs, kwargs)
    return Workload(name or type(module).__name__, (Phase("forward", cascade),), weights, state)
