"""The MatMul-free language model: ternary projections, a gated linear recurrence, no attention."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels.gate import wide
from hasten.models.language.recurrent import RecurrentLM
from hasten.models.loading import checkpoint
from hasten.models.registry import published
from hasten.nn.mlgru import MLGRU, TernaryGLU
from hasten.nn.ternary import BitLinear, TernaryLinear, pack_bitlinear

# Layers and width (arXiv 2406.02528, section 4); the inner width follows, the vocabulary is 32000.
PUBLISHED = {"matmul-free-370m": (24, 1024), "matmul-free-1.3b": (24, 2048), "matmul-free-2.7b": (32, 2560)}


@dataclass(frozen=True)
class MatMulFreeConfig:
    """Sizes.

    Args:
        width, layers, vocabulary: of the model.
        hidden: inner width of the gated MLP; 8 width / 3 rounded up to a multiple of 256 when 0.
        output: of the token mixer, see `hasten.nn.MLGRU`.
        ternary: False for full-precision projections in the same places, to see what ternary weights cost.
    """

    width: int = 1024
    layers: int = 24
    vocabulary: int = 32000
    hidden: int = 0
    output: Literal["code", "text"] = "code"
    ternary: bool = True


class _FullLinear(nn.Linear):
    """A projection in full precision behind the same norm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        self.norm = nn.RMSNorm(in_features, eps=1e-6, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x.to(self.weight.dtype)))


class _Layer(nn.Module):
    def __init__(self, config: MatMulFreeConfig, linear: type[nn.Module]) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attn = MLGRU(config.width, output=config.output, linear=linear)
        self.mlp_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.mlp = TernaryGLU(config.width, config.hidden or None, linear=linear)

    def forward(self, x: Tensor, state: Tensor | None, bound: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, length, width) to the same, and the state (batch, width) behind it."""
        mixed, last = self.attn(self.attn_norm(x), state, bound)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), last


@published(PUBLISHED)
class MatMulFreeLM(RecurrentLM[list[Tensor]]):
    """A language model without matrix products: additions, gates and one number of state a channel and layer.

    (Scalable MatMul-free Language Modeling, arXiv 2406.02528.) Embeddings are looked up and stay floats; every
    projection is ternary, the head included.

    Args:
        config: sizes.

    Shape:
        ids (batch, length) int64 to logits (batch, length, vocabulary).
    """

    no_decay: ClassVar[tuple[str, ...]] = ("lower_bounds",)

    def __init__(self, config: MatMulFreeConfig) -> None:
        super().__init__()
        self.config, self.vocabulary = config, config.vocabulary
        linear: type[nn.Module] = BitLinear if config.ternary else _FullLinear
        self.embeddings = nn.Embedding(config.vocabulary, config.width)
        self.lower_bounds = nn.Parameter(torch.zeros(config.layers, config.width))
        self.layers = nn.ModuleList(_Layer(config, linear) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.lm_head = linear(config.width, config.vocabulary)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """N(0, 0.02); what leads back to the residual divided by sqrt(2 layers); no lower bounds."""
        nn.init.zeros_(self.lower_bounds)
        for module in self.modules():
            if isinstance(module, BitLinear | nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for layer in self._layers:
            for module in (layer.attn.o_proj, layer.mlp.down_proj):
                cast(Tensor, module.weight).div_((2 * self.config.layers) ** 0.5)

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    @classmethod
    def named(cls, name: str) -> MatMulFreeLM:
        """A published size, with weights at their start."""
        layers, width = PUBLISHED[name]
        return cls(MatMulFreeConfig(width, layers))

    def bounds(self) -> Tensor:
        """Lower bounds of the forget gates (layers, width): 0 in the first layer, growing with depth, below 1."""
        shares = torch.softmax(self.lower_bounds.to(wide(self.lower_bounds.dtype)), 0).cumsum(0)
        return shares - shares[:1]

    def new_state(self, batch: int) -> list[Tensor]:
        return [layer.attn.new_state(batch) for layer in self._layers]

    def state_tensors(self, state: list[Tensor]) -> dict[str, Tensor]:
        return {f"state.{i}": s for i, s in enumerate(state)}

    def forward(self, ids: Tensor, state: list[Tensor] | None = None, *, logits_to_keep: int = 0) -> Tensor:
        """Logits of every position, or of the last ``logits_to_keep``; ``state`` is moved on to the last token."""
        x = self.embeddings(ids)
        bounds = self.bounds()
        for i, layer in enumerate(self._layers):
            x, last = layer(x, None if state is None else state[i], bounds[i])
            if state is not None:
                if torch.is_grad_enabled() and last.requires_grad:
                    state[i] = last
                else:
                    state[i].copy_(last)
        return self.lm_head(self.norm(x)[:, -logits_to_keep:])

    if TYPE_CHECKING:
        __call__ = forward

    def pack(self) -> MatMulFreeLM:
        """Packs every projection to 2 bits a weight, in place, for inference; returns self."""
        pack_bitlinear(self)
        return self.eval()

    @property
    def packed(self) -> bool:
        return isinstance(self.lm_head, TernaryLinear)

    def save(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``config.json``; a packed model stays packed."""
        checkpoint.save(folder, self, asdict(self.config) | {"packed": self.packed})

    @classmethod
    def load(cls, folder: str | Path) -> MatMulFreeLM:
        """Reads what `save` wrote.

        Raises:
            HastenError: a file is missing or broken, or the two do not belong together.
        """
        values: Any = checkpoint.read_config(folder)
        try:
            packed = values.pop("packed", False)
            config = MatMulFreeConfig(**values)
            with torch.device("meta"):
                model = cls(config)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise HastenError(f"{folder} has no configuration of a MatMul-free model: {error}") from None
        if packed:
            model.pack()
        checkpoint.fill(model, checkpoint.read_tensors(folder), folder)
        return model
