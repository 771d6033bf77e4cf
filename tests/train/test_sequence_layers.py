"""Every kind of layer makes a step, again and again, with gradients of its own."""

from __future__ import annotations

from typing import get_args

import pytest

from hasten.train.sequence_layers import LayerKind, layer_step


@pytest.mark.parametrize("kind", get_args(LayerKind))
def test_a_step_can_be_made_again(kind: LayerKind) -> None:
    step = layer_step(kind, 5, 0, batch=2)
    for _ in range(2):
        assert step() is None
