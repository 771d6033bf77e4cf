"""A network from a config and tensors, checked one by one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.loading.config import build


def assemble(config: Any, weights: dict[str, Tensor], origin: Path) -> Any:
    """The network of ``config`` with ``weights``, no memory written twice."""
    check_layers(config, weights, origin)
    if config.tie_word_embeddings:
        _tie(config, weights, origin)
    return fill_network(build(config), config, weights, origin)


def fill_network(network: Any, config: Any, weights: dict[str, Tensor], origin: Path) -> Any:
    """Gives a network on the meta device its parameters; modules that have theirs are left alone."""
    expected = check_shapes(network, config, {n: tuple(w.shape) for n, w in weights.items()}, origin)
    for name in expected:
        # A weight that is no number is the least and the largest; no mask of the weight's size is made.
        if not all(bool(torch.isfinite(end)) for end in torch.aminmax(weights[name])):
            raise HastenError(f"{origin}: {name} holds values that are not finite: fetch or copy it again")
    given = {name: buffer for name, buffer in network.state_dict().items() if name not in expected}
    network.load_state_dict({n: weights[n] for n in expected} | given, assign=True)
    if config.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    make_tables(network, config)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def make_tables(network: Any, config: Any) -> None:
    """Makes what no file carries and is still on the meta device: rotary frequencies, an embedding's scale."""
    network.model.rotary_emb = type(network.model.rotary_emb)(config)
    for module in network.modules():
        scale = getattr(module, "scalar_embed_scale", None)
        if scale is not None and getattr(module, "embed_scale", None) is not None:
            module.embed_scale = torch.nn.Buffer(torch.tensor(scale), persistent=False)


_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _tie(config: Any, weights: dict[str, Tensor], origin: Path) -> None:
    """Gives both names of a tied matrix the one that is stored; two that differ are two matrices, whatever is said."""
    table, head = weights.get(_EMBEDDING), weights.get(_HEAD)
    if table is not None and head is not None and not torch.equal(table, head):
        config.tie_word_embeddings = False
        warnings.warn(
            f"{origin} says that the embedding is the output head too, but holds two that differ: both are used",
            RuntimeWarning,
            stacklevel=4,
        )
        return
    one = table if table is not None else head
    if one is not None:
        weights[_EMBEDDING] = weights[_HEAD] = one


def check_layers(config: Any, names: Iterable[str], origin: Path) -> None:
    """Whether there are tensors of as many layers as the config says, before anything is built of them.

    Raises:
        HastenError: there are not; a wrong count in a config could ask for millions of layers.
    """
    layers = {int(found[1]) for name in names if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    if len(layers) != config.num_hidden_layers or max(layers, default=0) >= len(layers):
        raise HastenError(
            f"{origin} holds {len(layers)} layers, its config says {config.num_hidden_layers}: fetch or copy it again"
        )


def check_shapes(
    network: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], origin: Path
) -> dict[str, tuple[int, ...]]:
    """Whether tensors of these shapes are a network's, no more and no fewer.

    Returns:
        The shapes of the network's own parameters by name.

    Raises:
        HastenError: one is missing, unknown or of another shape.
    """
    expected = {n: tuple(p.shape) for n, p in network.named_parameters(remove_duplicate=False)}
    found = dict(shapes)
    for name, other in ((_HEAD, _EMBEDDING), (_EMBEDDING, _HEAD)):
        if config.tie_word_embeddings and other in found:
            found.setdefault(name, found[other])
    missing = sorted(set(expected) - set(found))
    if missing:
        raise HastenError(f"{origin} lacks {len(missing)} tensors (first: {missing[0][:60]!r}): fetch or copy it again")
    extra = sorted(set(found) - set(expected))
    if extra:
        raise HastenError(
            f"{origin} holds {len(extra)} tensors that a {config.model_type} network does not have "
            f"(first: {extra[0][:60]!r}): hasten cannot load this variant"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise HastenError(f"{origin}: {name} has shape {found[name]}, its config asks for {shape}")
    return expected
