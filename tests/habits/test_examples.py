"""Every public block, network and operator has an example, and each example runs."""

from __future__ import annotations

import pytest
import torch

from hasten.models.registry import builders

from .examples import BLOCKS, EXAMPLES, NETWORKS, OPERATORS, calls_of, inputs_of, made, modules_of, output_of


def test_every_public_module_has_an_example() -> None:
    kinds = {name.partition(":")[0] for name in EXAMPLES}
    # What models carry a state is no network itself.
    missing = (modules_of("hasten.nn").keys() | modules_of("hasten.models").keys()) - kinds - {"RecurrentLM"}
    assert not missing, f"give tests/habits/examples.py an instance of {', '.join(sorted(missing))}"
    assert not BLOCKS.keys() & NETWORKS.keys()


def test_every_published_network_has_an_example() -> None:
    for name, builder in builders().items():
        kind = getattr(builder, "__self__", None)
        # A function gives a network of transformers, which has habits of its own.
        assert kind is None or kind.__name__ in NETWORKS, f"{name} is of a network without an example"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str) -> None:
    module, inputs = made(name), inputs_of(name)
    assert output_of(name, module, *inputs).isfinite().all()
    assert (EXAMPLES[name].state is not None) >= hasattr(module, "new_state")
    assert EXAMPLES[name].trains == any(p.requires_grad for p in module.parameters())
    for given, dimension in zip(inputs, EXAMPLES[name].varies, strict=True):
        assert dimension is None or given.shape[dimension] in (9, 18)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_called_in_every_way(name: str) -> None:
    calls = list(calls_of(name))
    assert calls
    for given in calls:
        getattr(torch.ops.hasten, name)(*given)
