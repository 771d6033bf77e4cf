"""One view of a decoder, whoever wrote it: its layers, what each mixes tokens with, its ends, its state."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn

from hasten.errors import HastenError


@dataclass(frozen=True)
class DecoderLayer:
    """One layer and its parts; what a layer does not have is None.

    Args:
        module: the whole layer.
        attention: what mixes tokens: attention, or the recurrence in its place.
        attention_norm: what norms its input.
        feed_forward: what works on each token alone: an MLP or experts.
        feed_forward_norm: what norms its input.
        attention_after, feed_forward_after: what norms their results before they join the residual stream.
    """

    module: Any
    attention: Any
    attention_norm: Any
    feed_forward: Any
    feed_forward_norm: Any
    attention_after: Any = None
    feed_forward_after: Any = None


@runtime_checkable
class Decoder(Protocol):
    """What hasten needs to know of a causal language model to run, change or describe it.

    `decoder_of` gives one for transformers' networks and for hasten's own. A class of yours is one by having these
    members, or gets one by a class attribute ``layout`` (`Layout`).
    """

    @property
    def network(self) -> Any:
        """The module itself."""

    @property
    def config(self) -> Any:
        """Its sizes, under its own names."""

    @property
    def layers(self) -> nn.ModuleList:
        """Its layers, first to last."""

    @property
    def embedding(self) -> Any:
        """Token numbers (batch, length) to (batch, length, width)."""

    @property
    def norm(self) -> Any:
        """What norms the last layer's output before the head."""

    @property
    def head(self) -> Any:
        """(..., width) to logits (..., vocabulary)."""

    @property
    def rotary(self) -> Any:
        """What makes the rotary cosines and sines that all layers share; None without one."""

    def layer(self, index: int) -> DecoderLayer:
        """Layer ``index`` and its parts."""

    def replace_layers(self, layers: Iterable[nn.Module], kept: Sequence[int]) -> None:
        """Puts ``layers`` in place of its own; ``kept`` says which of the old ones each stands for.

        The network's own record of its layers (their number, their kinds, their places in a cache) follows.
        """

    def new_state(self, batch: int = 1) -> Any:
        """What it carries from token to token, before the first: a cache of keys and values, or a recurrent state."""


@dataclass(frozen=True)
class Layout:
    """Where a class keeps its parts: dotted attribute names; of several the first that is there.

    Args:
        layers, embedding, norm, head, rotary: of the network.
        attention, attention_norm, feed_forward, feed_forward_norm, attention_after, feed_forward_after: of a layer.
    """

    layers: tuple[str, ...] = ("model.layers",)
    embedding: tuple[str, ...] = ("model.embed_tokens",)
    norm: tuple[str, ...] = ("model.norm",)
    head: tuple[str, ...] = ("lm_head",)
    rotary: tuple[str, ...] = ("model.rotary_emb",)
    attention: tuple[str, ...] = ("self_attn",)
    attention_norm: tuple[str, ...] = ("input_layernorm",)
    feed_forward_norm: tuple[str, ...] = ("post_attention_layernorm",)
    feed_forward: tuple[str, ...] = ("mlp", "block_sparse_moe")
    attention_after: tuple[str, ...] = ()
    feed_forward_after: tuple[str, ...] = ()


# Llama, Mistral, Qwen2, Qwen3, Gemma, and whoever follows their names.
LLAMA_LIKE = Layout()
# Who norms results too (Gemma 2 and 3, OLMo 2) does so under the name that the others have for the MLP's input.
_AFTER = "post_feedforward_layernorm"
_NORMS_AFTER = {
    "feed_forward_norm": ("pre_feedforward_layernorm",),
    "attention_after": ("post_attention_layernorm",),
    "feed_forward_after": (_AFTER,),
}
# The same within a network of several parts, as Gemma 3 with pictures has it.
_NESTED = Layout(
    layers=("model.language_model.layers",),
    embedding=("model.language_model.embed_tokens",),
    norm=("model.language_model.norm",),
    rotary=("model.language_model.rotary_emb",),
)


def _found(root: Any, names: Iterable[str]) -> Any:
    for name in names:
        at = root
        for part in name.split("."):
            at = getattr(at, part, None)
        if at is not None:
            return at
    return None


class _Placed:
    """The `Decoder` of a network whose parts are where its `Layout` says."""

    def __init__(self, network: Any, layout: Layout) -> None:
        self.network, self._layout = network, layout

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def layers(self) -> nn.ModuleList:
        found = _found(self.network, self._layout.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def embedding(self) -> Any:
        return _found(self.network, self._layout.embedding)

    @property
    def norm(self) -> Any:
        return _found(self.network, self._layout.norm)

    @property
    def head(self) -> Any:
        return _found(self.network, self._layout.head)

    @property
    def rotary(self) -> Any:
        return _found(self.network, self._layout.rotary)

    def layer(self, index: int) -> DecoderLayer:
        module, places = self.layers[index], self._layout
        return DecoderLayer(
            module,
            _found(module, places.attention),
            _found(module, places.attention_norm),
            _found(module, places.feed_forward),
            _found(module, places.feed_forward_norm),
            _found(module, places.attention_after),
            _found(module, places.feed_forward_after),
        )

    def replace_layers(self, layers: Iterable[nn.Module], kept: Sequence[int]) -> None:
        new = layers if isinstance(layers, nn.ModuleList) else nn.ModuleList(layers)
        if len(new) != len(kept):
            raise ValueError(f"{len(new)} layers stand for {len(kept)} old ones: give one number each")
        name = next(n for n in self._layout.layers if _found(self.network, (n,)) is not None)
        parent, _, last = name.rpartition(".")
        owner = _found(self.network, (parent,)) if parent else self.network
        setattr(owner, last, new)
        for index in range(len(new)):
            attention = self.layer(index).attention
            if hasattr(attention, "layer_idx"):
                attention.layer_idx = index
        config = self.config
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = len(kept)
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = [kinds[i] for i in kept]

    def new_state(self, batch: int = 1) -> Any:
        if hasattr(self.network, "new_state"):
            return self.network.new_state(batch)
        from transformers import DynamicCache

        return DynamicCache(config=self.config)


class HasLayout(Protocol):
    """A class that says where its parts are."""

    layout: ClassVar[Layout]


def decoder_of(network: Any) -> Decoder:
    """The `Decoder` of a network: itself if it is one, or a view of it by its ``layout``.

    Views hold nothing: they may be made anew whenever one is needed, and see what has changed.

    Args:
        network: of transformers, of hasten, or your own.

    Raises:
        HastenError: its parts are nowhere that is known.

    Example:
        ``decoder_of(network).layer(0).attention``
    """
    if isinstance(network, Decoder):
        return network
    given = getattr(type(network), "layout", None)
    for layout in (given,) if given is not None else (LLAMA_LIKE, _NESTED):
        layers = _found(network, layout.layers)
        if isinstance(layers, nn.ModuleList):
            norms_after = len(layers) > 0 and hasattr(layers[0], _AFTER)
            norms_after = norms_after and layout.feed_forward_norm == LLAMA_LIKE.feed_forward_norm
            return _Placed(network, replace(layout, **_NORMS_AFTER) if norms_after else layout)
    raise HastenError(
        f"the layers of {type(network).__name__} are nowhere that hasten knows: give its class a `layout` "
        "(hasten.models.decoder.Layout)"
    )


def is_decoder(network: Any) -> bool:
    """Whether `decoder_of` knows this network."""
    try:
        decoder_of(network)
    except HastenError:
        return False
    return True


@contextmanager
def chained(decoder: Decoder, path: Sequence[int]) -> Iterator[None]:
    """Within, the network runs the layers of ``path`` in that order, one as often as it is named; weights are shared.

    Args:
        decoder: whose layers they are.
        path: numbers of layers.
    """
    before, config = decoder.layers, decoder.config
    kinds = getattr(config, "layer_types", None)
    decoder.replace_layers([_again(decoder.layer(i)) for i in path], path)
    try:
        yield
    finally:
        if kinds:
            config.layer_types = kinds
        decoder.replace_layers(before, range(len(before)))


def _again(layer: DecoderLayer) -> nn.Module:
    """A layer over the same weights, whose attention may have another place in a cache."""
    step, attention = copy.copy(layer.module), copy.copy(layer.attention)
    name = next(n for n, child in layer.module.named_children() if child is layer.attention)
    step._modules = {**layer.module._modules, name: attention}
    return step
