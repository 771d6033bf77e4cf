"""A network from a config and tensors, checked one by one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.config import build


def assemble(config: Any, weights: dict[str, Tensor], origin: Path) -> Any:
    """The network of ``config`` with ``weights``, no memory written twice."""
    layers = {int(found[1]) for name in weights if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    # Before anything is built: a wrong count in a config could ask for millions of layers.
    if len(layers) != config.num_hidden_layers or max(layers, default=0) >= len(layers):
        raise HastenError(
            f"{origin} holds {len(layers)} layers, its config says {config.num_hidden_layers}: fetch or copy it again"
        )
    network = build(config)
    expected = {n: tuple(p.shape) for n, p in network.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise HastenError(f"{origin} lacks {len(missing)} tensors (first: {missing[0][:60]!r}): fetch or copy it again")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise HastenError(
            f"{origin} holds {len(extra)} tensors that a {config.model_type} network does not have "
            f"(first: {extra[0][:60]!r}): hasten cannot load this variant"
        )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            got = tuple(weights[name].shape)
            raise HastenError(f"{origin}: {name} has shape {got}, its config asks for {shape}")
        # A sum is finite when every value is; no mask of the weight's size is made.
        if not torch.isfinite(weights[name].sum(dtype=torch.float32)):
            raise HastenError(f"{origin}: {name} holds values that are not finite: fetch or copy it again")
    network.load_state_dict({n: weights[n] for n in expected}, assign=True)
    if config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    # Buffers that no file carries (rotary frequencies) are still on the meta device.
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()
