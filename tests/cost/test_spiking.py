"""What training spiking networks costs."""

from __future__ import annotations

from hasten.cost.spiking import recurrent_training, reservoir_training


def test_they_count_as_the_papers_sizes_say() -> None:
    # 256 inputs, 50 steps, 200 neurons; projections to 64.
    assert recurrent_training(1, 1, 50, 256, 200) == 3 * 50 * (256 * 200 + 200 * 200)
    assert reservoir_training(2, 10, 200, 64, 500.0) == 2 * (3 * 10 * 200 * 64 + 500)
    assert reservoir_training(2, 10, 200, 64, 500.0, epochs_run=10) == 2 * 10 * (3 * 200 * 64 + 500)
