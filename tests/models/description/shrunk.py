"""Configurations of transformers' own model types with few layers, for tests over all of them."""

from __future__ import annotations

from typing import Any

_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "encoder_layers", "decoder_layers")


def shrunk(kind: str, layers: int = 4) -> Any:
    """The default configuration of a model type with at most ``layers`` layers; whole where it cannot be cut."""
    from transformers import CONFIG_MAPPING

    whole = CONFIG_MAPPING[kind]()
    given = whole.to_diff_dict()
    depths = {name: getattr(whole, name) for name in _DEPTHS if isinstance(getattr(whole, name, None), int)}
    cut = {k: v for k, v in given.items() if not (isinstance(v, list) and len(v) in depths.values())}
    try:
        return CONFIG_MAPPING[kind](**{**cut, **{name: min(layers, size) for name, size in depths.items()}})
    except Exception:  # a class that ties its sizes together in a way of its own
        return whole
