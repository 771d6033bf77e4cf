"""`torch.compile` makes one whole graph, whatever the length."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch._dynamo import mark_dynamic
from torch._dynamo.testing import CompileCounterWithBackend

from .examples import BLOCKS, EXAMPLES, first, inputs_of, made, output_of, slow_where
from .exemptions import EXEMPT, expected, skip_network

# Tried every time; the others with the slow tests.
QUICK = {"BlockFFN", "GroupRational", "Mamba", "PackedLinear", "S5"}


def graphs(name: str, lengths: tuple[int, ...]) -> int:
    """How many are made for these lengths, each of which gives what the module gives."""
    torch._dynamo.reset()
    module, example = made(name), EXAMPLES[name]
    module.train(not example.pictures)
    # Gradients of blocks are traced too; a network's parts are blocks.
    counter = CompileCounterWithBackend("aot_eager" if name in BLOCKS else "eager")
    run = torch.compile(lambda *inputs: example.call(module, *inputs), backend=counter, fullgraph=True)
    for length in lengths:
        inputs = inputs_of(name, length)
        for given, dimension in zip(inputs, example.varies, strict=True):
            if dimension is not None:
                mark_dynamic(given, dimension)
        found = first(run(*inputs))
        torch.testing.assert_close(found, output_of(name, module, *inputs), rtol=1e-4, atol=1e-5)
        if found.requires_grad and name in BLOCKS:
            found.square().mean().backward()
    return int(counter.frame_count)


@functools.cache
def of_a_convolution() -> int:
    """Graphs that torch's own modules make of these batches."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    run = torch.compile(module, backend=counter, fullgraph=True)
    for length in (9, 2, 40):
        images = torch.randn(length, 3, 6, 6)
        mark_dynamic(images, 0)
        run(images)
    return int(counter.frame_count)


@pytest.mark.parametrize("name", slow_where(lambda name: name not in QUICK))
def test_compile(name: str) -> None:
    skip_network(name, "compile")
    with expected(name, "compile"):
        assert graphs(name, (9, 2, 40)) <= (of_a_convolution() if EXAMPLES[name].pictures else 1)


def test_what_is_tried_every_time_has_the_habit() -> None:
    assert not any((name, "compile") in EXEMPT for name in QUICK)
