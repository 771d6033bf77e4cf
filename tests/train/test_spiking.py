"""Spiking networks trained through time."""

from __future__ import annotations

import torch

from hasten.nn import Reservoir
from hasten.train.contrastive import Objective
from hasten.train.probing import probe_accuracy
from hasten.train.spiking import SpikingRNN, align_spiking, train_spiking_classifier


def problem(samples: int = 120, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Events of 12 channels whose rates tell three classes apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    rates = 0.1 + 0.7 * torch.rand(3, 12, generator=generator)
    events = (torch.rand(samples, 15, 12, generator=generator) < rates[labels][:, None]).float()
    return events, labels, torch.arange(samples) < 0.7 * samples


def test_it_fires_as_a_reservoir_of_its_weights() -> None:
    events, *_ = problem()
    network, reservoir = SpikingRNN(12, 30, seed=4), Reservoir(12, 30, threshold=5.0)
    with torch.no_grad():
        for name in ("drive.weight", "recurrent.weight"):
            reservoir.get_parameter(name).copy_(network.get_parameter(name) * 5)
        apart = (network(events) * 15 - reservoir(events)).abs()
    assert float((apart > 0.5).float().mean()) < 0.01  # another order of sums: a membrane may lie on the threshold
    assert float(reservoir(events).mean()) > 0.1


def test_a_spikes_slope_is_a_rectangle() -> None:
    network = SpikingRNN(1, 1)
    with torch.no_grad():
        network.recurrent.weight.zero_()
    for weight, slope in ((0.5, 0.0), (0.9, 2.0), (1.1, 2.0), (1.3, 0.0)):
        with torch.no_grad():
            network.drive.weight.fill_(weight)
        network.zero_grad()
        network(torch.ones(1, 1, 1)).sum().backward()
        assert network.drive.weight.grad is not None
        assert float(network.drive.weight.grad) == slope


def test_training_moves_recurrent_weights_and_helps() -> None:
    events, labels, training = problem()
    known, asked = events[~training], labels[~training]
    untrained = train_spiking_classifier(events, labels, training, size=20, steps=1)
    trained = train_spiking_classifier(events, labels, training, size=20, steps=60, rate=5e-3)
    recurrent = "0.recurrent.weight"
    assert not torch.equal(trained.get_parameter(recurrent), untrained.get_parameter(recurrent))
    assert probe_accuracy(trained, known, asked) > max(0.6, probe_accuracy(untrained, known, asked))


def test_two_networks_are_aligned_without_the_held_out_class() -> None:
    events, labels, training = problem()
    poisoned = torch.where((labels == 2)[:, None, None], 1.0, events)
    objectives: tuple[Objective, ...] = ("contrastive", "prototypes")
    for objective in objectives:
        one, other = (
            align_spiking(e, e, labels, training, (2,), objective=objective, size=10, steps=3, width=4, batch=8)
            for e in (events, poisoned)
        )
        assert one[0] == other[0]
        assert 0 <= one[1] <= 1
