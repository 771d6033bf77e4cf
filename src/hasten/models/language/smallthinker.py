"""SmallThinker: a decoder for machines with slow storage, whose router reads the residual before attention does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, overload

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.decoder import LLAMA_LIKE, Layout
from hasten.models.language.routed import RoutedLM, through
from hasten.models.loading import checkpoint
from hasten.models.registry import published
from hasten.nn.attention import GroupedAttention, LayerCache, Rotary
from hasten.nn.block import Block
from hasten.nn.moe import Routing
from hasten.nn.reglu_experts import Activation, ReGLUExperts

# Layers, width, heads, KV heads, experts, used, inner, tied, hybrid (arXiv 2507.20984, table 1, and the releases'
# configs).
PUBLISHED = {
    "smallthinker-4b": (32, 1536, 12, 2, 32, 4, 768, True, False),
    "smallthinker-21b": (52, 2560, 28, 4, 64, 6, 768, False, True),
}
_VOCABULARY, _HEAD_DIM, _WINDOW = 151936, 128, 4096


@dataclass(frozen=True)
class SmallThinkerConfig:
    """Sizes.

    Args:
        width, layers, heads, kv_heads, head_dim, vocabulary: of the decoder.
        experts, used, inner: experts of a layer, experts of a token, values within one.
        rotary: for each layer whether it has rotary positions; empty: all.
        windowed: for each layer whether it sees a window alone; empty: none.
        window: tokens that such a layer sees.
        tied: whether the head is the embedding.
        activation: of the experts' gates.
        early: route from the residual before attention; otherwise from what the experts read.
        softmax: how used experts are weighed.
        theta: base of the rotary positions.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocabulary: int = 96
    experts: int = 8
    used: int = 2
    inner: int = 96
    rotary: tuple[int, ...] = ()
    windowed: tuple[int, ...] = ()
    window: int = _WINDOW
    tied: bool = True
    activation: Activation = "relu"
    early: bool = True
    softmax: bool = False
    theta: float = 1.5e6

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise HastenError("heads are a multiple of kv heads, and a head has an even number of channels")
        for name in ("rotary", "windowed"):
            layout = getattr(self, name)
            if layout and (len(layout) != self.layers or set(layout) - {0, 1}):
                raise HastenError(f"{name} has a 0 or 1 for each of the {self.layers} layers, or nothing")
        if (
            min(self.width, self.layers, self.vocabulary, self.inner, self.window) < 1
            or not 0 < self.used <= self.experts
        ):
            raise HastenError("sizes are at least 1, and a token uses some of the experts")


def hybrid(layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(rotary, windowed) of the 21B release: every fourth layer sees everything, without positions."""
    local = tuple(int(i % 4 != 0) for i in range(layers))
    return local, local


class Layer(Block):
    """One block: router logits, attention, experts."""

    def __init__(self, config: SmallThinkerConfig, index: int) -> None:
        super().__init__()
        c = config
        self.early = c.early
        self.input_layernorm = nn.RMSNorm(c.width, eps=1e-6)
        self.self_attn = GroupedAttention(
            c.width,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            rotary=Rotary(c.head_dim, c.theta) if not c.rotary or c.rotary[index] else None,
            window=c.window if c.windowed and c.windowed[index] else None,
        )
        self.post_attention_layernorm = nn.RMSNorm(c.width, eps=1e-6)
        self.block_sparse_moe = ReGLUExperts(c.width, c.inner, c.experts, c.used, c.activation, c.softmax)

    @overload
    def forward(self, x: Tensor, cache: LayerCache | None, *, return_routing: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, cache: LayerCache | None, *, return_routing: Literal[True]
    ) -> tuple[Tensor, Routing]: ...
    def forward(self, x: Tensor, cache: LayerCache | None, *, return_routing: bool = False) -> Any:
        """x (batch, length, width) to the same; with ``return_routing`` the experts' `Routing` too."""
        moe = self.block_sparse_moe
        logits = moe.primary_router(x) if self.early else None
        x = x + self.self_attn(self.input_layernorm(x), cache)
        h = self.post_attention_layernorm(x)
        logits = moe.primary_router(h) if logits is None else logits
        if return_routing:
            y, routing = moe(h, logits, return_routing=True)
            return x + y, routing
        return x + moe(h, logits)

    if TYPE_CHECKING:
        __call__ = forward


class _Decoder(nn.Module):
    def __init__(self, config: SmallThinkerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)

    def forward(self, ids: Tensor, state: list[LayerCache] | None, routings: list[Routing] | None) -> Tensor:
        """Token numbers (batch, length) to what the head reads (batch, length, width); ``routings`` are added to."""
        return self.norm(through(self.layers, self.embed_tokens(ids), state, routings))


@published(PUBLISHED)
class SmallThinkerLM(RoutedLM):
    """A causal language model of the SmallThinker family (arXiv 2507.20984); tensors have the released names.

    Args:
        config: sizes.

    Shape:
        ids (batch, length) int64 to logits (batch, length, vocabulary); of a `Routing` (tokens, experts).
    """

    layout: ClassVar[Layout] = LLAMA_LIKE

    def __init__(self, config: SmallThinkerConfig) -> None:
        super().__init__()
        self.config, self.vocabulary = config, config.vocabulary
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        self._start()
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _start(self) -> None:
        width = self.config.width
        for parameter in self.parameters():
            if parameter.ndim == 2:
                # The released models start at 0.02; narrower ones need more.
                nn.init.normal_(parameter, std=0.02 if width >= 1024 else width**-0.5)

    @classmethod
    def named(cls, name: str) -> SmallThinkerLM:
        """A published size, with weights at their start."""
        layers, width, heads, kv_heads, experts, used, inner, tied, mixed = PUBLISHED[name]
        rotary, windowed = hybrid(layers) if mixed else ((), ())
        return cls(
            SmallThinkerConfig(
                width,
                layers,
                heads,
                kv_heads,
                _HEAD_DIM,
                _VOCABULARY,
                experts,
                used,
                inner,
                rotary,
                windowed,
                tied=tied,
            )
        )

    @classmethod
    def load(cls, folder: str | Path) -> SmallThinkerLM:
        """A model from a folder with the released layout.

        Raises:
            HastenError: a file is missing or broken, or describes another model.
        """
        data = checkpoint.read_config(folder)
        try:
            config = _from_released(data)
        except (KeyError, TypeError, ValueError) as error:
            raise HastenError(f"{folder} does not hold a SmallThinker model ({error}): give another folder") from None
        with torch.device("meta"):
            model = cls(config)
        tensors = checkpoint.read_tensors(folder)
        if config.tied:
            tensors.setdefault("lm_head.weight", tensors.get("model.embed_tokens.weight", torch.zeros(0)))
        checkpoint.fill(model, {n: t.float() for n, t in tensors.items()}, folder)
        return model.eval()

    def save(self, folder: str | Path) -> None:
        """Writes config and weights in the released layout.

        Raises:
            HastenError: a file cannot be written.
        """
        checkpoint.save(folder, self, _released(self.config))

    @property
    def blocks(self) -> list[Layer]:
        """The layers."""
        return cast("list[Layer]", list(self.model.layers))

    def state_at(self, batch: int, length: int) -> list[LayerCache]:
        return [layer.self_attn.new_cache(batch, length) for layer in self.blocks]

    def hidden(self, ids: Tensor, state: list[LayerCache] | None, routings: list[Routing] | None) -> Tensor:
        return self.model(ids, state, routings)


_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocabulary": "vocab_size",
    "experts": "moe_num_primary_experts",
    "used": "moe_num_active_primary_experts",
    "inner": "moe_ffn_hidden_size",
    "softmax": "moe_primary_router_apply_softmax",
    "rotary": "rope_layout",
    "windowed": "sliding_window_layout",
    "window": "sliding_window_size",
    "theta": "rope_theta",
    "tied": "tie_word_embeddings",
}


def _released(config: SmallThinkerConfig) -> dict[str, Any]:
    data = asdict(config)
    found = {key: data[name] for name, key in _KEYS.items()}
    found["rope_layout"] = list(config.rotary or (1,) * config.layers)
    found["sliding_window_layout"] = list(config.windowed or (0,) * config.layers)
    return {"model_type": "smallthinker", **found, "activation": config.activation, "early_router": config.early}


def _from_released(data: Any) -> SmallThinkerConfig:
    if not isinstance(data, dict) or data.get("model_type") != "smallthinker":
        raise KeyError("its config.json is not of model_type smallthinker")
    given = {name: data[key] for name, key in _KEYS.items() if key in data}
    for name in ("rotary", "windowed"):
        given[name] = tuple(int(i) for i in given.get(name) or ())
    return SmallThinkerConfig(**given, activation=data.get("activation", "relu"), early=data.get("early_router", True))


class HeadPredictor(Block):
    """Guesses which rows of the output head matter, and computes those alone: costs a little accuracy.

    It is trained by `hasten.train.head_predictor.fit_head_predictor`. Scores come from a low-rank product
    width -> rank -> vocabulary; of the best ``rows`` the logits are exact, all
    others are minus infinity.

    Args:
        width, vocabulary: of the head.
        rank: of the guess.
        rows: logits that are computed.
    """

    def __init__(self, width: int, vocabulary: int, rank: int = 64, rows: int = 2048) -> None:
        super().__init__()
        self.rows = min(rows, vocabulary)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, vocabulary, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Scores (..., vocabulary)."""
        return self.up(self.down(h))

    if TYPE_CHECKING:
        __call__ = forward

    def logits(self, h: Tensor, head: Tensor) -> Tensor:
        """Logits (vocabulary) of one state h (width) with the head (vocabulary, width)."""
        chosen = self(h).topk(self.rows).indices
        return torch.full((head.shape[0],), -torch.inf).index_put((chosen,), head[chosen] @ h)
