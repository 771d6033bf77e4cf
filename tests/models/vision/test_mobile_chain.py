"""FBNet's space: codes, operations counted two ways, networks that are the sum of their parts."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hasten.errors import HastenError
from hasten.models.vision.mobile_chain import OPERATIONS, SKIP, ChainBlock, ChainConfig, MobileChain, chain_macs
from hasten.models.vision.once_for_all import OFAConfig, macs

SMALL = ChainConfig(multiplier=0.25, resolution=32, last=64)


def test_codes_are_of_the_published_lengths() -> None:
    config = ChainConfig()
    assert config.places == 22
    assert config.features == 132
    assert OFAConfig().features == 145
    chain = (0, 5, 7, SKIP, *[3] * 18)
    row = config.encode(chain)
    assert len(row) == 132
    assert row[:6] == [1, 0, 1, 0, 0, 0]
    assert row[6:12] == [0, 1, 0, 1, 0, 0]
    assert row[12:18] == [0, 1, 0, 0, 0, 1]
    assert row[18:24] == [0] * 6
    assert config.codes([chain, chain]).shape == (2, 132)
    graphs = config.graphs([chain])
    assert graphs.shape == (1, 25, 12 + 25)
    assert graphs[0, :, :12].sum(1).tolist() == [1] * 25
    assert graphs[0, -1, 12:].sum() == 25
    assert sum(config.counts(chain)) == 22


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_different_chains_have_different_codes(seed: int) -> None:
    rng = random.Random(seed)
    one, two = SMALL.sample(rng), SMALL.sample(rng)
    assert (one == two) == (SMALL.encode(one) == SMALL.encode(two))


def test_varied_chains_differ_more_in_size() -> None:
    rng = random.Random(0)

    def range_of(draw: Callable[[random.Random], tuple[int, ...]]) -> float:
        sizes = sorted(chain_macs(SMALL, draw(rng)) for _ in range(200))
        return sizes[180] / sizes[20]

    assert range_of(SMALL.sample_varied) > 1.3 * range_of(SMALL.sample)


@pytest.mark.parametrize("seed", range(3))
def test_operations_are_those_of_the_network_and_of_its_parts(seed: int) -> None:
    chain = SMALL.sample(random.Random(seed))
    network, image = SMALL.build(chain)
    assert network(image).shape == (1, 100)
    assert chain_macs(SMALL, chain) == macs(network, 32)
    parts = 0
    for _, make, shape in SMALL.parts(chain):
        parts += macs(make().eval(), shape[-1], shape[0])
    assert parts == chain_macs(SMALL, chain)


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
@pytest.mark.parametrize(("outputs", "stride"), [(8, 1), (16, 2)])
def test_a_block_keeps_its_shape(operation: int, outputs: int, stride: int) -> None:
    block = ChainBlock(8, outputs, operation, stride).eval()
    x = torch.randn(2, 8, 9, 9)
    assert block(x).shape == (2, outputs, 9 if stride == 1 else 5, 9 if stride == 1 else 5)
    if operation == SKIP and stride == 1:
        assert torch.equal(block(x), x)
    groups = [m.groups for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert (2 in groups) == OPERATIONS[operation].endswith("g2")


def test_groups_hear_each_other() -> None:
    """The shuffle between two grouped convolutions lets every output see every input."""
    torch.manual_seed(0)  # weights under which no activation is silent everywhere
    block = ChainBlock(4, 8, OPERATIONS.index("k3_e1_g2"), 1).eval()
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    block(x)[0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((0, 2, 3)) > 0).all()


def test_what_is_no_chain_is_said() -> None:
    with pytest.raises(HastenError, match="22 numbers"):
        MobileChain(ChainConfig(), (0, 1))
    with pytest.raises(HastenError, match="from 0 to 8"):
        ChainConfig().encode((9,) * 22)
    with pytest.raises(HastenError, match="equal length"):
        ChainConfig(widths=(16,))
    with pytest.raises(HastenError, match="at least 1"):
        ChainConfig(resolution=0)
