"""Reservoirs of leaky integrate-and-fire neurons: the oracles of arXiv 2307.00771."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import Crossbar
from hasten.methods import AnalogArrays
from hasten.nn import AnalogLinear, Reservoir, noisy_reads


def events(batch: int = 5, steps: int = 20, channels: int = 16, share: float = 0.4, seed: int = 0) -> torch.Tensor:
    return (torch.rand(batch, steps, channels, generator=torch.Generator().manual_seed(seed)) < share).float()


def test_nothing_fires_without_weights_or_below_an_infinite_threshold() -> None:
    x = events()
    assert not Reservoir(16, 30, gain=0.0)(x).any()
    assert not Reservoir(16, 30, threshold=float("inf"))(x).any()
    assert Reservoir(16, 30)(x).any()


def test_without_memory_a_spike_is_a_threshold() -> None:
    reservoir, x = Reservoir(16, 30, decay=0.0, recurrent=False, threshold=1.0), events()
    driven = x @ reservoir.get_parameter("drive.weight").mT
    assert torch.equal(reservoir(x), (driven > 1.0).sum(1).float())


def test_it_is_the_equation_written_out() -> None:
    reservoir, x = Reservoir(6, 9, threshold=2.0, decay=0.9), events(2, 12, 6)
    into, within = (reservoir.get_parameter(f"{name}.weight").tolist() for name in ("drive", "recurrent"))
    for sample, found in zip(x.tolist(), reservoir.spikes(x).tolist(), strict=True):
        membrane, fired = [0.0] * 9, [0.0] * 9
        for given, spikes in zip(sample, found, strict=True):
            coming = [
                sum(w * v for w, v in zip(into[i], given, strict=True))
                + sum(w * s for w, s in zip(within[i], fired, strict=True))
                for i in range(9)
            ]
            membrane = [0.9 * m * (1 - s) + c for m, s, c in zip(membrane, fired, coming, strict=True)]
            fired = [float(m > 2.0) for m in membrane]
            assert fired == spikes


@pytest.mark.parametrize("recurrent", [True, False])
def test_by_events_it_is_the_same_bit_for_bit_and_additions_are_counted(recurrent: bool) -> None:
    reservoir, x = Reservoir(40, 100, recurrent=recurrent, seed=2), events(7, 30, 40)
    run = reservoir.run_events(x)
    assert torch.equal(run.spikes, reservoir.spikes(x))
    before = run.spikes[:, :-1].sum((1, 2)) if recurrent else 0
    assert torch.equal(run.additions, (100 * (x.sum((1, 2)) + before)).long())
    assert 0.005 < float(run.spikes.mean()) < 0.3
    with pytest.raises(HastenError, match="0 or 1"):
        reservoir.run_events(x * 0.5)


def test_order_and_company_in_a_batch_change_nothing_and_time_does() -> None:
    reservoir, x = Reservoir(16, 40, seed=1), events()
    whole = reservoir(x)
    assert torch.equal(reservoir(x.flip(0)).flip(0), whole)
    assert torch.equal(torch.cat([reservoir(row[None]) for row in x]), whole)
    assert not torch.equal(reservoir(x.flip(1)), whole)


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_gain_and_threshold_times_a_power_of_two_leave_every_spike(factor: float) -> None:
    x = events()
    plain, scaled = Reservoir(16, 40, seed=3), Reservoir(16, 40, gain=0.07 * factor, threshold=5.0 * factor, seed=3)
    assert torch.equal(scaled.spikes(x), plain.spikes(x))
    assert plain.spikes(x).any()


def test_nothing_in_it_is_trained() -> None:
    reservoir, x = Reservoir(16, 40), events()
    before = {k: v.clone() for k, v in reservoir.state_dict().items()}
    readout = torch.nn.Linear(40, 3)
    optimizer = torch.optim.SGD([*reservoir.parameters(), *readout.parameters()], 0.1)
    readout(reservoir(x)).square().sum().backward()
    optimizer.step()
    assert readout.weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in reservoir.parameters())
    assert all(torch.equal(v, before[k]) for k, v in reservoir.state_dict().items())


def test_cells_without_noise_or_converters_fire_as_software() -> None:
    exact, x = Crossbar(input_bits=0, adc_bits=0), events(channels=40)
    formed = Reservoir.formed(40, 80, crossbar=exact, seed=5)
    assert isinstance(formed.drive, AnalogLinear)
    assert float((formed.drive.positive - formed.drive.negative).std()) == pytest.approx(6.61, rel=0.05)
    twin = formed.twin()
    apart = (formed.spikes(x) - twin.spikes(x)).abs().mean()
    assert float(apart) < 0.02  # its weights are rounded to 13 bits
    with noisy_reads(formed, 1):
        assert torch.equal(formed(x), formed.spikes(x).sum(1).float())  # no noise was asked for
    with pytest.raises(HastenError, match="twin"):
        formed.run_events(x)


def test_reads_with_noise_fire_otherwise_and_the_same_from_a_seed() -> None:
    formed, x = Reservoir.formed(40, 80, crossbar=Crossbar(input_bits=0, read_noise=0.05), seed=5), events(channels=40)
    with noisy_reads(formed, 1):
        first = formed(x)
    with noisy_reads(formed, 1):
        assert torch.equal(formed(x), first)
    assert not torch.equal(formed(x), first)
    off = (first - formed.twin()(x)).norm() / first.norm()
    assert 0 < float(off) < 0.5


def test_the_method_puts_arrays_under_a_reservoir_as_under_any_network() -> None:
    reservoir, x = Reservoir(16, 40), events()
    wanted = reservoir(x)
    changed = AnalogArrays(adc_bits=0, input_bits=0).apply(reservoir)
    assert isinstance(changed.recurrent, AnalogLinear)
    assert float((changed(x) - wanted).abs().mean()) < 0.05


def test_events_of_every_type_are_counted() -> None:
    """Counts are no events: as truth values, or as bytes, they would be cut off."""
    events = torch.rand(2, 300, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    reservoir = Reservoir(8, 16, gain=0.3, threshold=0.0)
    expected = reservoir(events.float())
    assert float(expected.max()) > 255 / 2
    for dtype in (torch.bool, torch.uint8, torch.int64):
        assert torch.equal(reservoir(events.to(dtype)), expected)
    assert reservoir(events.double()).dtype is torch.float64


def test_what_is_no_reservoir_or_no_events_is_refused_in_a_line() -> None:
    nan = float("nan")
    for wrong in ({"gain": nan}, {"gain": float("inf")}, {"threshold": nan}, {"decay": -0.1}, {"decay": nan}):
        with pytest.raises(HastenError, match="a decay between 0 and 1"):
            Reservoir(8, 16, **wrong)
    for channels, size in ((-1, 4), (4, 0)):
        with pytest.raises(HastenError, match="at least 1 neuron"):
            Reservoir(channels, size)
    reservoir = Reservoir(8, 16)
    for run in (reservoir, reservoir.spikes, reservoir.run_events):
        for shape in ((16, 8), (2, 5, 7)):
            with pytest.raises(ValueError, match=r"events are \(batch, steps, 8\)"):
                run(torch.zeros(shape))
