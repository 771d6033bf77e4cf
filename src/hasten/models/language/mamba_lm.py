"""Mamba as a language model, in the layout of the published checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels.gate import wide
from hasten.models.decoder import Layout
from hasten.models.language.recurrent import RecurrentLM
from hasten.models.loading import checkpoint
from hasten.models.registry import published
from hasten.nn.mamba import Mamba, MambaState

# Layers and width of the released models, all with a vocabulary of 50277 (arXiv 2312.00752, section 4.2).
PUBLISHED = {
    "mamba-130m": (24, 768),
    "mamba-370m": (48, 1024),
    "mamba-790m": (48, 1536),
    "mamba-1.4b": (48, 2048),
    "mamba-2.8b": (64, 2560),
}


@dataclass(frozen=True)
class MambaConfig:
    """What a published ``config.json`` says; the names are theirs.

    Args:
        d_model, n_layer: width and number of layers.
        vocab_size: tokens; the table has it rounded up to a multiple of ``pad_vocab_size_multiple``.
        ssm_cfg: what a block takes besides its width: ``d_state``, ``d_conv``, ``expand``, ``dt_rank``.
        tie_embeddings: whether the head is the embedding.
    """

    d_model: int = 768
    n_layer: int = 24
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @classmethod
    def from_dict(cls, values: Any) -> MambaConfig:
        """From a published ``config.json``'s content.

        Raises:
            HastenError: it is no such configuration, or of a kind that is not built here.
        """
        if not isinstance(values, dict) or not {"d_model", "n_layer", "vocab_size"} <= set(values):
            raise HastenError("this is no Mamba configuration: it needs d_model, n_layer and vocab_size")
        for name in ("d_model", "n_layer", "vocab_size"):
            if not isinstance(values[name], int) or values[name] < 1:
                raise HastenError(f"the Mamba configuration's {name} must be a positive whole number")
        if values.get("d_intermediate") or values.get("attn_layer_idx"):
            raise HastenError("this Mamba configuration has attention or MLP layers: only plain Mamba is built here")
        if not values.get("rms_norm", True):
            raise HastenError("this Mamba configuration asks for LayerNorm: only RMSNorm is built here")
        options = dict(values.get("ssm_cfg") or {})
        if options.pop("layer", "Mamba1") != "Mamba1":
            raise HastenError("this Mamba configuration is of another generation: only Mamba 1 is built here")
        if unknown := set(options) - set(_BLOCK):
            raise HastenError(f"this Mamba configuration's ssm_cfg has {', '.join(sorted(unknown))}: not built here")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"ssm_cfg": options})


_BLOCK = {"d_state": "states", "d_conv": "kernel", "expand": "expand", "dt_rank": "step_rank"}


class _Layer(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        options = {_BLOCK[k]: v for k, v in config.ssm_cfg.items() if v != "auto"}
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mixer = Mamba(config.d_model, **options)

    def forward(self, x: Tensor, state: MambaState | None, starts: Tensor | None) -> Tensor:
        return x + self.mixer(self.norm(x.to(self.norm.weight.dtype)), state, starts)


class _Backbone(nn.Module):
    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocabulary, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.n_layer))
        self.norm_f = nn.RMSNorm(config.d_model, eps=1e-5)
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(self, ids: Tensor, state: list[MambaState] | None, starts: Tensor | None) -> Tensor:
        """Token numbers (batch, length) to what the head reads (batch, length, width)."""
        x = self.embedding(ids)
        if self.residual_in_fp32:
            x = x.to(wide(x.dtype))
        for i, layer in enumerate(self.layers):
            x = layer(x, None if state is None else state[i], starts)
        return self.norm_f(x.to(self.norm_f.weight.dtype))


@published(PUBLISHED)
class MambaLM(RecurrentLM[list[MambaState]]):
    """A language model of Mamba blocks alone: no attention, no MLP, no positions (arXiv 2312.00752).

    Parameters have the published names and shapes (``backbone.layers.0.mixer.in_proj.weight``, ...), so a
    checkpoint loads as it is.

    Args:
        config: sizes.

    Shape:
        ids (batch, length) int64 to logits (batch, length, padded vocabulary).
    """

    layout: ClassVar[Layout] = Layout(
        layers=("backbone.layers",),
        embedding=("backbone.embedding",),
        norm=("backbone.norm_f",),
        rotary=(),
        attention=("mixer",),
        attention_norm=("norm",),
        feed_forward=(),
        feed_forward_norm=(),
    )

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = config.vocab_size
        self.backbone = _Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocabulary, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Embeddings N(0, 0.02); each block's way back to the residual scaled by 1 / sqrt(layers)."""
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        for layer in self._layers:
            layer.mixer.out_proj.weight /= self.config.n_layer**0.5

    @classmethod
    def named(cls, name: str) -> MambaLM:
        """A published size, with weights at their start."""
        layers, width = PUBLISHED[name]
        return cls(MambaConfig(width, layers))

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.backbone.layers))

    def new_state(self, batch: int) -> list[MambaState]:
        return [layer.mixer.new_state(batch) for layer in self._layers]

    def state_tensors(self, state: list[MambaState]) -> dict[str, Tensor]:
        return {f"state.{i}.{name}": getattr(s, name) for i, s in enumerate(state) for name in ("conv", "ssm")}

    def forward(
        self,
        ids: Tensor,
        state: list[MambaState] | None = None,
        *,
        starts: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits of every position, or of the last ``logits_to_keep``.

        Args:
            ids: (batch, length).
            state: what came before, from `new_state`; moved on to the last token.
            starts: (batch, length) bool, where new sequences begin: several texts packed into a row, or a row's first
                token behind padding on the left.
        """
        return self.lm_head(self.backbone(ids, state, starts)[:, -logits_to_keep:])

    if TYPE_CHECKING:
        __call__ = forward

    def save(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``config.json``, in the published layout."""
        checkpoint.save(folder, self, asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path) -> MambaLM:
        """Reads a folder with ``config.json`` and ``model.safetensors`` of the published layout.

        Raises:
            HastenError: a file is missing or broken, or a tensor is missing, unknown or of another shape.
        """
        config = MambaConfig.from_dict(checkpoint.read_config(folder))
        tensors = checkpoint.read_tensors(folder)
        # transformers calls the table so.
        if "backbone.embeddings.weight" in tensors:
            tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
        if config.tie_embeddings and "backbone.embedding.weight" in tensors:
            tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
        with torch.device("meta"):
            model = cls(config)
        checkpoint.fill(model, tensors, folder)
        return model


def small_mamba(
    vocabulary: int,
    *,
    width: int = 64,
    layers: int = 2,
    states: int = 16,
    selective: tuple[str, ...] = ("B", "C", "delta"),
    tied: bool = False,
) -> MambaLM:
    """A Mamba behind an embedding of unit variance, of the size of the paper's synthetic tasks: to train in minutes.

    Args:
        vocabulary: tokens.
        width: of the hidden state.
        layers: blocks.
        states: of a channel.
        selective: which maps depend on the token, see `hasten.nn.Mamba`.
        tied: whether embedding and head share their weights.
    """
    model = MambaLM(MambaConfig(width, layers, vocabulary, tie_embeddings=tied))
    nn.init.normal_(model.backbone.embedding.weight)
    for layer in model.backbone.layers:
        layer.mixer = Mamba(width, states=states, selective=selective)
    return model
