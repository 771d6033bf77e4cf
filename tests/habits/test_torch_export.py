"""`torch.export` of whole sequences of any length, and of a step with its state."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from hasten.nn import Mamba, Stepped

from .examples import EXAMPLES, NETWORKS, STATEFUL, first, ids, inputs_of, made, slow_where
from .exemptions import EXEMPT, expected, skip_network


class Called(nn.Module):
    """An example's module, called as its example says."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.module, self.name = made(name).eval(), name

    def forward(self, *inputs: Any) -> Any:
        return first(EXAMPLES[self.name].call(self.module, *inputs))


def _slow(habit: str) -> Callable[[str], bool]:
    # Networks are made of blocks, which are tried every time, each in one form.
    return lambda name: name in NETWORKS or ":" in name or (name, habit) in EXEMPT


@pytest.mark.parametrize("name", slow_where(_slow("export")))
def test_export(name: str) -> None:
    skip_network(name, "export")
    with expected(name, "export"), torch.no_grad():
        module, dimensions = Called(name), EXAMPLES[name].varies
        # The router is given the tokens of two sequences in one dimension.
        length = 2 * Dim("length", min=2, max=2048) if name == "Router" else Dim("length", min=2, max=4096)
        shapes = tuple(None if d is None else {d: length} for d in dimensions)
        program = torch.export.export(module, inputs_of(name), dynamic_shapes=(shapes,)).module()
        for count in (9, 2, 40):
            inputs = inputs_of(name, count)
            found, wanted = program(*inputs), module(*inputs)
            if name == "MatMulFreeLM":
                # Activations are rounded to int8: another order of sums moves a code by one now and then.
                assert float((found - wanted).norm() / wanted.norm()) < 0.02
            else:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _specification(tree: Any) -> Any:
    """How torch wants it said that numbers and the tokens of caches differ: classes by their parts."""
    if isinstance(tree, torch.Tensor):
        # Only the tokens of a cache, (batch, heads, tokens, size), grow.
        return {2: Dim.AUTO} if tree.ndim == 4 else None
    if isinstance(tree, int):
        return Dim.DYNAMIC
    if type(tree) in torch.utils._pytree.SUPPORTED_NODES:
        parts, _ = torch.utils._pytree.SUPPORTED_NODES[type(tree)].flatten_fn(tree)
        found = [*map(_specification, parts)]
        return dict(zip(tree, found)) if isinstance(tree, dict) else tuple(found) if type(tree) is tuple else found
    return None


@pytest.mark.parametrize("name", slow_where(_slow("export of a step"), STATEFUL))
def test_export_of_a_step(name: str) -> None:
    skip_network(name, "export of a step")
    with expected(name, "export of a step"), torch.no_grad():
        module = made(name).eval()
        stepped = Stepped(module)
        (x,) = inputs_of(name, 16)
        state = EXAMPLES[name].state(module, 2)  # type: ignore[misc]
        _, state = stepped(x[:, :8], state)
        shapes = (None, _specification(state))
        copied = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, state)
        program = torch.export.export(stepped, (x[:, 8:9], copied), dynamic_shapes=shapes).module()
        kept = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, state)
        for i in range(8, 16):
            wanted, state = stepped(x[:, i : i + 1], state)
            found, kept = program(x[:, i : i + 1], kept)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_exported_program_is_kept_in_a_file() -> None:
    module, file = Mamba(16, states=4, selective=()).eval(), io.BytesIO()
    x = torch.randn(2, 9, 16)
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), module(x))


def test_states_are_trees() -> None:
    for name in STATEFUL:
        module = made(name).eval()
        state = EXAMPLES[name].state(module, 2)  # type: ignore[misc]
        leaves, tree = torch.utils._pytree.tree_flatten(state)
        assert all(isinstance(leaf, torch.Tensor | int) for leaf in leaves), name
        again = torch.utils._pytree.tree_unflatten(leaves, tree)
        (x,) = ids(3) if inputs_of(name)[0].dtype is torch.int64 else inputs_of(name, 3)
        wanted, _ = Stepped(module)(x, state)
        torch.testing.assert_close(Stepped(module)(x, again)[0], wanted)
