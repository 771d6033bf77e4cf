"""The workload of a language model from its configuration alone: no module is built, no weight exists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor as TorchTensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes
from hasten.workload.dispatch import recording
from hasten.workload.einsum import Cascade, Einsum, Phase, Role, Workload
from hasten.workload.experts import grouped_experts
from hasten.workload.latent import absorbed_attention
from hasten.workload.recorder import Recorder

_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
_LATENT = ("deepseek_v3", "longcat_flash")
ARCHITECTURES = (*_LLAMA, *_LATENT)
_FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def language_model(
    config: Any,
    *,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    dtype: str = "fp32",
    cache_dtype: str | None = None,
) -> Workload:
    """The phases ``prefill`` (once) and ``decode`` (``new_tokens`` times) of a Llama-like language model.

    The decode step stands for all of them: it is taken in the middle, with ``prompt + new_tokens // 2``
    positions in the cache. Only the last position of a prompt goes through the output head.

    Args:
        config: a transformers configuration, or a mapping like the one in its ``config.json``.
        prompt: tokens of each prompt.
        new_tokens: tokens made for each sequence.
        batch: sequences.
        dtype: of weights and activations: ``fp32``, ``bf16`` or ``fp16``.
        cache_dtype: of keys and values; ``dtype`` by default.

    Returns:
        A workload whose weights have the names and bytes of the transformers model's parameters and buffers,
        and whose state is the key-value cache at its largest.

    Raises:
        HastenError: an architecture or a number format that is not known, or sizes below 1.

    >>> config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
    ...           "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> work = language_model(config, prompt=16, new_tokens=4)
    >>> [(phase.name, phase.repeats) for phase in work.phases]
    [('prefill', 1), ('decode', 4)]
    """
    settings = _settings(config)
    for name, value in (("prompt", prompt), ("new_tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise HastenError(f"{name} is {value}: give at least 1")
    for wanted in (dtype, cache_dtype or dtype):
        if wanted not in _FLOATS:
            raise HastenError(f"unknown number format {wanted!r}: choose one of {', '.join(_FLOATS)}")
    phases = []
    network = _Network(settings, batch, prompt + new_tokens, _FLOATS[dtype], _FLOATS[cache_dtype or dtype])
    for name, new, past, repeats in (
        ("prefill", prompt, 0, 1),
        ("decode", 1, prompt + new_tokens // 2, new_tokens),
    ):
        phases.append(Phase(name, network.run(new, past), repeats))
    return Workload(
        getattr(settings, "name_or_path", "") or settings.model_type,
        tuple(phases),
        network.weights,
        network.state,
        {"prompt": prompt, "new_tokens": new_tokens, "batch": batch, "dtype": dtype},
    )


def _settings(config: Any) -> Any:
    known = ", ".join(ARCHITECTURES)
    kind = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        raise HastenError(f"unknown architecture {kind!r}: a configuration alone is enough for {known}")
    if not isinstance(config, Mapping):
        return config
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**config)
    except (TypeError, ValueError) as error:
        raise HastenError(f"the {kind} configuration is not valid: {error}") from error


@dataclass(frozen=True)
class _Layer:
    """A traced layer: its Einsums, the hidden state's names before and after it, its weights and cache."""

    number: int
    einsums: list[Einsum]
    entered: str
    left: str
    tensors: list[str]


class _Network:
    """The forward pass as a torch program on fake tensors. Parameter names are those of transformers."""

    def __init__(self, config: Any, batch: int, capacity: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
        self.c = config
        self.sizes = DecoderSizes.of(config)
        self.replay = True  # off in the test that replaying changes nothing
        self.batch = batch
        self.capacity = capacity
        self.dtype = dtype
        self.cache_dtype = cache_dtype
        self.weights: dict[str, int] = {}
        self.state: dict[str, int] = {}
        self.recorder = Recorder()
        self._tensors: dict[str, TorchTensor] = {}
        self._fake = FakeTensorMode()

    def run(self, new: int, past: int) -> Cascade:
        """One call with ``new`` tokens behind ``past`` cached ones."""
        self.recorder = Recorder()
        self._tensors = {}
        with recording(self.recorder, self._fake):
            ids = torch.empty(self.batch, new, dtype=torch.int64)
            self.recorder.bind(ids, "input0", Role.INPUT)
            logits = self._forward(ids, past)
        return self.recorder.cascade([logits])

    @contextmanager
    def _in(self, path: str) -> Iterator[None]:
        before, self.recorder.path = self.recorder.path, path
        try:
            yield
        finally:
            self.recorder.path = before

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, role: Role) -> TorchTensor:
        if name not in self._tensors:
            tensor = torch.empty(shape, dtype=dtype)
            self.recorder.bind(tensor, name, role)
            self._tensors[name] = tensor
            sizes = self.state if role is Role.STATE else self.weights
            sizes[name] = tensor.numel() * tensor.element_size()
        return self._tensors[name]

    def _weight(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> TorchTensor:
        return self._tensor(name, shape, dtype or self.dtype, Role.WEIGHT)

    def _linear(self, path: str, x: TorchTensor, out: int, bias: bool = False) -> TorchTensor:
        with self._in(path):
            weight = self._weight(f"{path}.weight", out, x.shape[-1])
            return F.linear(x, weight, self._weight(f"{path}.bias", out) if bias else None)

    def _norm(self, path: str, x: TorchTensor) -> TorchTensor:
        with self._in(path):
            wide = x.float()
            scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self._weight(f"{path}.weight", x.shape[-1]) * scaled.to(x.dtype)

    # -- the model -------------------------------------------------------------------------------

    def _forward(self, ids: TorchTensor, past: int) -> TorchTensor:
        sizes = self.sizes
        table = self._weight("model.embed_tokens.weight", sizes.vocabulary, sizes.hidden)
        with self._in("model.embed_tokens"):
            hidden = F.embedding(ids, table)
        rotary = self._rotary(ids.shape[1])
        traced: dict[tuple[bool, int | None], _Layer] = {}
        for layer in range(sizes.layers):
            kind = (sizes.has_experts(layer), None if sizes.kv_rank else sizes.window_of(layer))
            if self.replay and kind in traced:
                hidden = self._again(traced[kind], layer, hidden)
                continue
            start, known = len(self.recorder.einsums), set(self._tensors)
            entered = self.recorder.name_of(hidden)
            hidden = self._layer(layer, hidden, rotary, past)
            traced[kind] = _Layer(
                layer,
                self.recorder.einsums[start:],
                entered,
                self.recorder.name_of(hidden),
                [name for name in self._tensors if name not in known],
            )
        hidden = self._norm("model.norm", hidden)[:, -1:]
        if sizes.tied:
            with self._in("lm_head"):
                return F.linear(hidden, table)
        return self._linear("lm_head", hidden, sizes.vocabulary)

    def _layer(
        self, layer: int, hidden: TorchTensor, rotary: tuple[TorchTensor, TorchTensor], past: int
    ) -> TorchTensor:
        path = f"model.layers.{layer}"
        with self._in(path):
            if self.c.model_type == "longcat_flash":
                return self._shortcut_layer(path, layer, hidden, rotary, past)
            normed = self._norm(f"{path}.input_layernorm", hidden)
            attend = self._latent_attention if self.c.model_type in _LATENT else self._attention
            hidden = hidden + attend(f"{path}.self_attn", layer, normed, rotary, past)
            normed = self._norm(f"{path}.post_attention_layernorm", hidden)
            feed = self._moe if self.sizes.has_experts(layer) else self._mlp
            return hidden + feed(f"{path}.mlp", normed)

    def _again(self, like: _Layer, layer: int, hidden: TorchTensor) -> TorchTensor:
        """Layer ``layer``, which is ``like`` with its own weights and cache, without running it again."""
        recorder = self.recorder
        caches = self.sizes.attentions
        old, new = f"model.layers.{like.number}", f"model.layers.{layer}"
        names = {like.entered: recorder.name_of(hidden)}
        for name in like.tensors:
            if name.startswith("cache."):
                _, number, which = name.split(".")
                own = f"cache.{int(number) + caches * (layer - like.number)}.{which}"
            else:
                own = new + name.removeprefix(old)
            names[name] = own
            known = recorder.tensors[name]
            recorder.tensors[own] = replace(known, name=own)
            sizes = self.state if known.role is Role.STATE else self.weights
            sizes[own] = known.nbytes
        recorder.repeat(like.einsums, names, lambda path: new + path.removeprefix(old))
        result = torch.empty_like(hidden)
        recorder.bind_to(result, names[like.left])
        return result

    def _shortcut_layer(
        self, path: str, layer: int, hidden: TorchTensor, rotary: tuple[TorchTensor, TorchTensor], past: int
    ) -> TorchTensor:
        """LongCat-Flash: two attention and two dense sublayers, the experts beside them."""
        shortcut = hidden
        for i in range(2):
            normed = self._norm(f"{path}.input_layernorm.{i}", hidden)
            attended = self._latent_attention(f"{path}.self_attn.{i}", 2 * layer + i, normed, rotary, past)
            hidden = hidden + attended
            normed = self._norm(f"{path}.post_attention_layernorm.{i}", hidden)
            if i == 0:
                shortcut = self._moe(f"{path}.mlp", normed)
            hidden = hidden + self._mlp(f"{path}.mlps.{i}", normed)
        return hidden + shortcut

    def _rotary(self, new: int) -> tuple[TorchTensor, TorchTensor]:
        with self._in("model.rotary_emb"):
            half = (self.sizes.rotary_dim or self.sizes.head_dim) // 2
            frequencies = self._weight("model.rotary_emb.inv_freq", half, dtype=torch.float32)
            self._weight("model.rotary_emb.original_inv_freq", half, dtype=torch.float32)
            angles = torch.arange(new).float()[:, None] * frequencies
            both = torch.cat((angles, angles), -1)
            return both.cos().to(self.dtype), both.sin().to(self.dtype)

    @staticmethod
    def _turned(x: TorchTensor, rotary: tuple[TorchTensor, TorchTensor]) -> TorchTensor:
        cos, sin = rotary
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    def _cached(self, layer: int, which: str, new: TorchTensor, past: int, window: int | None) -> TorchTensor:
        """Writes ``new`` (batch, heads, tokens, channels); returns what it may attend to."""
        batch, heads, count, width = new.shape
        kept = self.capacity if window is None else min(self.capacity, window)
        shape = (batch, heads, kept, width)
        buffer = self._tensor(f"cache.{layer}.{which}", shape, self.cache_dtype, Role.STATE)
        start = min(past, kept - 1) if count == 1 else 0
        buffer[:, :, start : start + count].copy_(new[:, :, -kept:])
        if not past:
            return new
        return buffer[:, :, : min(past + count, kept)].to(new.dtype)

    def _attention(
        self, path: str, layer: int, x: TorchTensor, rotary: tuple[TorchTensor, TorchTensor], past: int
    ) -> TorchTensor:
        c, sizes, new = self.c, self.sizes, x.shape[1]
        heads, width = sizes.heads, sizes.head_dim
        biased = c.model_type == "qwen2" or bool(getattr(c, "attention_bias", False))
        with self._in(path):

            def heads_of(name: str, count: int) -> TorchTensor:
                made = self._linear(f"{path}.{name}_proj", x, count * width, biased)
                made = made.view(self.batch, new, count, width)
                if c.model_type.startswith("qwen3") and name in "qk":
                    made = self._norm(f"{path}.{name}_norm", made)
                return made.transpose(1, 2)

            query = self._turned(heads_of("q", heads), rotary)
            key = self._turned(heads_of("k", sizes.kv_heads), rotary)
            value = heads_of("v", sizes.kv_heads)
            window = sizes.window_of(layer)
            key = self._cached(layer, "keys", key, past, window)
            value = self._cached(layer, "values", value, past, window)
            if window is not None and not past:  # kernels skip what no query of a window sees
                key, value = key[:, :, :window], value[:, :, :window]
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=not past, enable_gqa=True)
            mixed = mixed.transpose(1, 2).reshape(self.batch, new, heads * width)
            out_biased = c.model_type != "qwen2" and biased
            return self._linear(f"{path}.o_proj", mixed, sizes.hidden, out_biased)

    def _latent_attention(
        self, path: str, layer: int, x: TorchTensor, rotary: tuple[TorchTensor, TorchTensor], past: int
    ) -> TorchTensor:
        """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache keeps what keys and values
        are expanded from, for a prompt; a step attends to it as it is."""
        sizes, new, heads = self.sizes, x.shape[1], self.sizes.heads
        rope, value_width, rank = sizes.rotary_dim, sizes.value_dim, sizes.kv_rank
        nope = sizes.head_dim - rope
        biased = bool(getattr(self.c, "attention_bias", False))
        with self._in(path):
            if not sizes.query_rank:
                query = self._linear(f"{path}.q_proj", x, heads * (nope + rope))
            else:
                low = self._linear(f"{path}.q_a_proj", x, sizes.query_rank, biased)
                low = self._norm(f"{path}.q_a_layernorm", low)
                query = self._linear(f"{path}.q_b_proj", low, heads * (nope + rope))
            query = query.view(self.batch, new, heads, nope + rope).transpose(1, 2)
            plain, turned = query.split((nope, rope), -1)
            query = torch.cat((plain, self._turned(turned, rotary)), -1)
            latent = self._linear(f"{path}.kv_a_proj_with_mqa", x, rank + rope, biased)
            low, key_rope = latent.split((rank, rope), -1)
            low = self._norm(f"{path}.kv_a_layernorm", low)[:, None]
            key_rope = self._turned(key_rope[:, None], rotary)
            low = self._cached(layer, "keys", low, past, None)
            key_rope = self._cached(layer, "values", key_rope, past, None)
            if new == 1 and past:
                weight = self._weight(f"{path}.kv_b_proj.weight", heads * (nope + value_width), rank)
                mixed = absorbed_attention(self.recorder, query, low, key_rope, weight, nope)
                return self._linear(f"{path}.o_proj", mixed.flatten(2), sizes.hidden, biased)
            wide = self._linear(f"{path}.kv_b_proj", low[:, 0], heads * (nope + value_width))
            wide = wide.view(self.batch, -1, heads, nope + value_width).transpose(1, 2)
            key, value = wide.split((nope, value_width), -1)
            key = torch.cat((key, key_rope.expand(-1, heads, -1, -1)), -1)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=not past)
            mixed = mixed.transpose(1, 2).reshape(self.batch, new, heads * value_width)
            return self._linear(f"{path}.o_proj", mixed, sizes.hidden, biased)

    def _mlp(self, path: str, x: TorchTensor, width: int | None = None) -> TorchTensor:
        width = width or self.sizes.inner
        biased = bool(getattr(self.c, "mlp_bias", False))
        with self._in(path):
            gate = F.silu(self._linear(f"{path}.gate_proj", x, width, biased))
            up = self._linear(f"{path}.up_proj", x, width, biased)
            return self._linear(f"{path}.down_proj", gate * up, self.sizes.hidden, biased)

    def _moe(self, path: str, x: TorchTensor) -> TorchTensor:
        kind, sizes = self.c.model_type, self.sizes
        router = "router.classifier" if kind == "longcat_flash" else "gate"
        experts, passing, width, hidden = sizes.experts, sizes.zero_experts, sizes.expert_inner, sizes.hidden
        flat = x.reshape(-1, x.shape[-1])
        with self._in(path):
            with self._in(f"{path}.{router.split('.', maxsplit=1)[0]}"):
                table = self._weight(f"{path}.{router}.weight", experts + passing, hidden)
                logits = F.linear(flat, table)
                scores = logits.float().softmax(-1) if kind != "deepseek_v3" else logits.float().sigmoid()
                if kind in _LATENT:
                    name = f"{path}.{router.split('.', maxsplit=1)[0]}.e_score_correction_bias"
                    bias = self._weight(name, experts + passing, dtype=torch.float32)
                    ids = torch.topk(scores + bias, sizes.experts_per_token).indices
                    scores = scores.gather(-1, ids)
                else:
                    scores, ids = torch.topk(scores, sizes.experts_per_token)
                if kind != "longcat_flash":
                    scores = scores / scores.sum(-1, keepdim=True)
            with self._in(f"{path}.experts"):
                gate_up = self._weight(f"{path}.experts.gate_up_proj", experts + passing, 2 * width, hidden)
                down = self._weight(f"{path}.experts.down_proj", experts, hidden, width)
                made = grouped_experts(flat, ids, scores, gate_up, down, F.silu).view(x.shape)
            if sizes.shared_experts:
                made = made + self._mlp(f"{path}.shared_experts", x, width * sizes.shared_experts)
            return made
