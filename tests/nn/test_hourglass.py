"""Hourglass: its starts, embeddings of one shape into the other, sizes, and a lift that is never stored."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hasten.nn import Hourglass
from hasten.nn.hourglass import counted_normal


def hourglass(**options) -> Hourglass:
    torch.manual_seed(0)
    return Hourglass(20, **{"hidden": 5, "layers": 3, "latent": 60, "lift": "frozen"} | options)


@pytest.mark.parametrize("options", [{}, {"lift": "trained"}, {"lift": "none", "latent": None}])
def test_it_starts_as_the_identity(options: dict) -> None:
    x = torch.randn(7, 20)
    torch.testing.assert_close(hourglass(**options)(x), x, rtol=1e-4, atol=1e-5)


def test_without_widening_it_is_the_conventional_block() -> None:
    plain = Hourglass(20, hidden=40, layers=2)
    wide = Hourglass(20, hidden=40, layers=2, latent=20, lift="trained")
    with torch.no_grad():
        wide.lift.copy_(torch.eye(20))
        wide.read.weight.copy_(torch.eye(20))
        for one, other in zip(plain.blocks, wide.blocks):
            torch.nn.init.normal_(one.down.weight)
            other.load_state_dict(one.state_dict())
    x = torch.randn(4, 20)
    torch.testing.assert_close(wide(x), plain(x))


def test_a_conventional_net_embeds_into_a_wide_one() -> None:
    """Without norms: lift [I; 0], blocks that use the first part alone, read-out [I, 0]."""
    plain = Hourglass(20, hidden=40, layers=2)
    wide = Hourglass(20, hidden=40, layers=2, latent=50, lift="trained")
    with torch.no_grad():
        wide.lift.copy_(torch.eye(50, 20))
        wide.read.weight.copy_(torch.eye(20, 50))
        for one, other in zip(plain.blocks, wide.blocks):
            torch.nn.init.normal_(one.down.weight)
            other.up.weight.zero_()[:, :20] = one.up.weight
            other.down.weight.zero_()[:20] = one.down.weight
            one.norm = other.norm = torch.nn.Identity()
    x = torch.randn(4, 20)
    torch.testing.assert_close(wide(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"lift": "trained"}, {"lift": "none", "latent": None}, {"outputs": 7}])
def test_sizes_are_what_is_counted(options: dict) -> None:
    network = hourglass(**options)
    sizes = network.sizes()
    assert sizes.trainable == sum(p.numel() for p in network.parameters())
    assert sizes.stored == sum(t.numel() for t in network.state_dict().values())
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 20))
    assert counter.get_total_flops() == sizes.flops


def test_the_lift_is_made_again_bit_for_bit_in_another_process() -> None:
    matrix = counted_normal(40, 30, seed=5)
    code = "from hasten.nn.hourglass import counted_normal as c; print(c(40, 30, 5).numpy().tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == matrix.numpy().tobytes().hex()
    assert torch.equal(counted_normal(10, 30, 5, first=25), matrix[25:35])
    assert not torch.equal(counted_normal(40, 30, 6), matrix)
    assert "lift" not in hourglass().state_dict()


def test_it_is_normal_and_keeps_distances() -> None:
    big = counted_normal(400, 500, seed=1)
    assert abs(float(big.mean())) < 0.01
    assert float(big.std()) == pytest.approx(1, abs=0.01)
    assert float((big.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    latent = 256
    lift = Hourglass(64, hidden=4, layers=1, latent=latent, lift="frozen").lift
    x, y = torch.randn(2, 200, 64)
    ratio = ((x - y) @ lift.T).square().sum(1) / (x - y).square().sum(1) * 64 / latent
    assert abs(float(ratio.median()) - 1) < 3 / latent**0.5


def test_training_leaves_the_frozen_lift_alone() -> None:
    network = hourglass()
    before = network.lift.clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    assert torch.equal(network.lift, before)


def test_blocks_of_several_widths() -> None:
    network = Hourglass(20, hidden=[5, 4, 4], layers=3)
    assert [block.up.out_features for block in network.blocks] == [5, 4, 4]
    assert network.sizes().trainable == sum(p.numel() for p in network.parameters()) == 2 * 20 * 13
    assert network.hidden == 5
    x = torch.randn(4, 20)
    torch.testing.assert_close(network(x), x)
    with pytest.raises(ValueError, match="2 inner widths are not of 3 blocks"):
        Hourglass(20, hidden=[5, 4], layers=3)
    with pytest.raises(ValueError, match="at least 1"):
        Hourglass(20, hidden=[5, 0], layers=2)


def test_latent_and_lift_go_together() -> None:
    for options in ({"latent": 30}, {"lift": "frozen"}):
        with pytest.raises(ValueError, match="go together"):
            Hourglass(20, hidden=5, layers=1, **options)


def test_a_frozen_lifts_seed_travels_with_the_state() -> None:
    one, other, same = hourglass(seed=3), hourglass(seed=0), hourglass(seed=3)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="of seed 3 for 20 inputs, this module's of seed 0 for 20"):
            other.load_state_dict(one.state_dict(), strict=strict)
    assert other.state_dict()["lift_from"].tolist() == [0, 20]
    torch.nn.init.normal_(one.blocks[0].down.weight)
    same.load_state_dict(one.state_dict())
    x = torch.randn(4, 20)
    assert torch.equal(same(x), one(x))
    # In a larger network too, and another width of the input is another lift.
    with pytest.raises(RuntimeError, match="make the module with seed=3"):
        torch.nn.Sequential(other).load_state_dict(torch.nn.Sequential(one).state_dict())
    narrow, wide = (Hourglass(n, 7, hidden=5, layers=1, latent=60, lift="frozen") for n in (20, 30))
    with pytest.raises(RuntimeError, match="for 20 inputs, this module's of seed 0 for 30"):
        wide.load_state_dict(narrow.state_dict())
    old = {name: tensor for name, tensor in one.state_dict().items() if name != "lift_from"}
    with pytest.raises(RuntimeError, match="Missing key"):
        same.load_state_dict(old)
    with pytest.raises(ValueError, match="64 bits"):
        hourglass(seed=2**63)


@pytest.mark.parametrize("assign", [False, True])
def test_a_module_without_storage_makes_its_lift_when_a_state_is_loaded(assign: bool) -> None:
    one = hourglass(seed=5)
    with torch.device("meta"):
        empty = hourglass(seed=5)
    if not assign:
        empty = empty.to_empty(device="cpu")
    empty.load_state_dict(one.state_dict(), assign=assign)
    assert torch.equal(empty.lift, one.lift)
