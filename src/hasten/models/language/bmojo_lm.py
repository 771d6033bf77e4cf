"""Language models of B'MOJO layers, and of what they have as special cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.models.language.recurrent import RecurrentLM
from hasten.nn.block import numbers_of
from hasten.nn.bmojo import BMojo, BMojoState, state_tensors
from hasten.nn.mamba import Mamba, causal_convolution

LAYERS = {
    "b": "B'MOJO",
    "f": "B'MOJO-F: no store",
    "w": "sliding-window attention",
    "a": "full attention",
    "m": "Mamba",
}


@dataclass(frozen=True)
class BMojoConfig:
    """Sizes.

    Args:
        pattern: a letter a layer: ``b`` B'MOJO, ``f`` without store, ``w`` sliding window, ``a`` full attention, ``m``
            Mamba. Mixed letters are a hybrid.
        width, heads, vocabulary: of the model.
        window, memory: of the layers.
        store: what they keep, see `hasten.nn.BMojo`.
        ratio: inner width of the MLP over width behind every layer but Mamba's; 0 for none.
        convolution: taps of a causal convolution on the embeddings; 0 for none.
        positions: ``rotary``, ``learned`` (up to ``longest``) or ``none``.
        longest: positions of ``learned``.
    """

    pattern: str = "bb"
    width: int = 64
    heads: int = 4
    vocabulary: int = 96
    window: int = 16
    memory: int = 16
    store: Literal["innovation", "random", "recent"] = "innovation"
    ratio: int = 4
    convolution: int = 0
    positions: Literal["rotary", "learned", "none"] = "rotary"
    longest: int = 1024


class _Layer(nn.Module):
    def __init__(self, config: BMojoConfig, kind: str) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.mixer: nn.Module
        if kind == "m":
            self.mixer = Mamba(config.width)
        else:
            self.mixer = BMojo(
                config.width,
                heads=config.heads,
                window=config.window if kind != "a" else 2**30,
                memory=config.memory if kind == "b" else 0,
                fading=kind in "bf",
                store=config.store,
                rotary=config.positions == "rotary",
                commit=config.window if kind != "a" else None,
            )
        hidden = config.ratio * config.width if kind != "m" else 0
        self.mlp_norm = nn.RMSNorm(config.width, eps=1e-5) if hidden else None
        self.mlp = (
            nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))
            if hidden
            else None
        )

    def forward(self, x: Tensor, state: Any) -> Tensor:
        x = x + self.mixer(self.norm(x), state)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x


class BMojoLM(RecurrentLM[list[Any]]):
    """A causal language model of B'MOJO, attention and Mamba layers in any order (arXiv 2407.06324).

    Args:
        config: sizes.

    Shape:
        ids (batch, length) int64 to logits (batch, length, vocabulary).

    Raises:
        ValueError: a pattern with an unknown letter.
    """

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        if not config.pattern or set(config.pattern) - set(LAYERS):
            raise ValueError(f"a pattern is made of {', '.join(LAYERS)}, not {config.pattern!r}")
        self.config, self.vocabulary = config, config.vocabulary
        self.embeddings = nn.Embedding(config.vocabulary, config.width)
        learned = config.positions == "learned"
        self.places = nn.Parameter(torch.randn(config.longest, config.width) * 0.1) if learned else None
        taps = config.convolution
        self.taps = nn.Parameter(torch.randn(config.width, taps) * taps**-0.5) if taps else None
        self.layers = nn.ModuleList(_Layer(config, kind) for kind in config.pattern)
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)

    def _start(self) -> None:
        if self.places is not None:
            nn.init.normal_(self.places, std=0.1)
        if self.taps is not None:
            nn.init.normal_(self.taps, std=self.taps.shape[1] ** -0.5)

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    def new_state(self, batch: int) -> list[Any]:
        """One entry a layer, and before them the last embeddings and the position."""
        width, taps = self.config.width, max(0, self.config.convolution - 1)
        first = {"embeddings": numbers_of(self).new_zeros(batch, taps, width), "position": 0}
        return [first, *(layer.mixer.new_state(batch) for layer in self._layers)]  # type: ignore[operator]

    def state_at(self, batch: int, length: int) -> list[Any]:
        """As behind ``length`` tokens: full attention's part grows, a window's and a store's until they are full."""
        state = self.new_state(batch)
        state[0]["position"] = length
        for i, layer in enumerate(self._layers):
            if isinstance(layer.mixer, BMojo):
                state[i + 1] = layer.mixer.state_at(batch, length)
        return state

    def state_tensors(self, state: list[Any]) -> dict[str, Tensor]:
        found = {"state.embeddings": state[0]["embeddings"]} if state[0]["embeddings"].numel() else {}
        for i, s in enumerate(state[1:]):
            tensors = s.tensors() if isinstance(s, BMojoState) else state_tensors(s)
            found |= {f"state.{i}.{name}": tensor for name, tensor in tensors.items()}
        return found

    def forward(self, ids: Tensor, state: list[Any] | None = None, *, logits_to_keep: int = 0) -> Tensor:
        """Logits of every position, or of the last ``logits_to_keep``; ``state`` is moved on to the last token."""
        x = self.embeddings(ids)
        begin = state[0]["position"] if state is not None else 0
        if self.taps is not None:
            before = state[0]["embeddings"].transpose(1, 2) if state is not None else None
            if state is not None:
                state[0]["embeddings"] = torch.cat([state[0]["embeddings"], x], 1)[:, -(self.taps.shape[1] - 1) :]
            x = causal_convolution(x, self.taps, None, before)
        if self.places is not None:
            if begin + ids.shape[1] > self.config.longest:
                raise ValueError(
                    f"{begin + ids.shape[1]} tokens are more than the {self.config.longest} learned positions"
                )
            x = x + self.places[begin : begin + ids.shape[1]]
        for i, layer in enumerate(self._layers):
            x = layer(x, None if state is None else state[i + 1])
        if state is not None:
            state[0]["position"] = begin + ids.shape[1]
        return self.lm_head(self.norm(x)[:, -logits_to_keep:])

    if TYPE_CHECKING:
        __call__ = forward


def next_token_losses(model: BMojoLM, window: Tensor) -> Tensor:
    """Loss at every position of a window (batch, length + 1) of ids, in nats: (batch, length)."""
    logits = model(window[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), window[:, 1:], reduction="none")
