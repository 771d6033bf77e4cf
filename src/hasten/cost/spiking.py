"""What training spiking networks costs, in multiply-accumulates and additions (arXiv 2307.00771)."""

from __future__ import annotations

# A backward pass makes two products for each one forward.
_TRAINED = 3


def recurrent_training(samples: int, epochs: int, steps: int, channels: int, size: int) -> float:
    """Multiply-accumulates of training a recurrent network of ``size`` spiking neurons through time."""
    return _TRAINED * samples * epochs * steps * (channels * size + size * size)


def reservoir_training(
    samples: int, epochs: int, size: int, width: int, additions: float, *, epochs_run: int = 1
) -> float:
    """Operations of training a projection of a reservoir's counts to ``width``.

    Args:
        additions: of an event-driven run, for each sample, as `hasten.nn.Reservoir.run_events` counts them.
        epochs_run: in how many epochs the reservoir runs: counts can be kept after the first.
    """
    return samples * (_TRAINED * epochs * size * width + epochs_run * additions)
