from __future__ import annotations

import torch

from hasten.models.language.real_layer import layer_answers, real_layer


def test_random_layers_have_the_form_of_trained_ones_and_answers_of_finite_size() -> None:
    weights, source = real_layer(5, small=True)
    assert source == "random numbers"
    width = weights["X"].shape[1]
    assert weights["WQ"].shape == (width, 2, 2, 3)
    assert weights["WO"].shape == (2, 2, 3, width)
    answers = layer_answers(weights)
    assert all(a.shape == weights["X"].shape and bool(torch.isfinite(a).all()) for a in answers.values())
