"""The small Llama of text: the same for a seed, better than chance after a few steps, and its test text is held out."""

from __future__ import annotations

import math

import torch

from hasten.train.text_llama import text_llama


def test_it_learns_and_is_the_same_again() -> None:
    network, held = text_llama(12, 0, length=32, width=32, layers=1, positions=64)
    again, _ = text_llama(12, 0, length=32, width=32, layers=1, positions=64)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))
    ids = held[:1024].reshape(32, 32)
    with torch.no_grad():
        logits = network(ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss < 0.9 * math.log(logits.shape[-1])
