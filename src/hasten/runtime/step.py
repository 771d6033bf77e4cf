"""One decoding step of a model in the compiled kernels: no Python per operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.cost.measuring import return_free_memory
from hasten.errors import HastenError
from hasten.kernels import gate
from hasten.kernels.compiled import ACTIVATIONS, FORMATS, MOST_TREE_ROWS, native
from hasten.kernels.kv_cache import BLOCK, BUFFERS
from hasten.kernels.packed_experts import native_stack
from hasten.kernels.packed_linear import GROUP, native_matrix
from hasten.kernels.tiles import TILE, in_tiles, to_rows
from hasten.models.decoder_form import DecoderForm, LayerForm, RowNorm, WeightRows, form_of
from hasten.models.mixture_form import ExpertStack, MixtureForm
from hasten.nn.packed import PackedEmbedding, PackedLinear
from hasten.nn.packed_experts import PackedGatedExperts
from hasten.runtime.cache import KVCache
from hasten.runtime.paged_cache import PagedCache
from hasten.runtime.policies import BlockTopKPolicy


def why_not_installed() -> str | None:
    """Why no network has a compiled step here; None where there are compiled kernels."""
    return "the compiled kernels are not installed" if native() is None else None


def why_not(network: Any) -> str | None:
    """Why the compiled step cannot run ``network``; None when it can."""
    try:
        compiled_form(network)
    except HastenError as error:
        return str(error)
    return None


def compiled_form(network: Any) -> DecoderForm:
    """The form of a network that the compiled step can run.

    Raises:
        HastenError: it cannot; the message goes on from "because".
    """
    if reason := why_not_installed():
        raise HastenError(reason)
    form = form_of(network)
    if reason := _why_not_form(form):
        raise HastenError(reason)
    return form


def _why_not_form(form: DecoderForm) -> str | None:
    for rows in (*(rows for layer in form.layers for rows in layer.weights), form.head, form.embedding):
        reason = _why_not_weight(rows.module if isinstance(rows, WeightRows) else rows)
        if reason:
            return reason
    mixtures = (layer.feed_forward for layer in form.layers)
    return next((r for m in mixtures if isinstance(m, MixtureForm) and (r := _why_not_mixture(m, form.hidden))), None)


# As configurations of experts name them.
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def _why_not_mixture(mixture: MixtureForm, hidden: int) -> str | None:
    if mixture.activation not in _ACTIVATIONS and mixture.clamped is None:
        return f"its experts' activation is {mixture.activation}"
    experts, routers = mixture.experts, [mixture.router.weight]
    if mixture.beside_router is not None and (reason := _why_not_weight(mixture.beside_router)):
        return reason
    if isinstance(experts, PackedGatedExperts):
        for stack in experts.stacks().values():
            if stack.bits not in FORMATS.values():
                return f"its experts are in {stack.format}"
        weights = [stack.packed for stack in experts.stacks().values()]
    else:
        weights = [experts.gate_up_proj, experts.down_proj]
        routers += weights
    for weight in routers:
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"a weight is {str(weight.dtype).removeprefix('torch.')}"
    for weight in (*routers, *weights):
        if weight.device.type != "cpu":
            return f"the model is on {weight.device.type}"
        if not weight.is_contiguous():
            return "a weight of its experts is not contiguous"
    if hidden % GROUP or mixture.inner % GROUP:
        return f"its experts' widths are no multiples of {GROUP}"
    return None


def _why_not_weight(module: nn.Module) -> str | None:
    if isinstance(module, PackedLinear | PackedEmbedding):
        weight, columns = module.packed, getattr(module, "in_features", getattr(module, "embedding_dim", 0))
        if module.bits not in FORMATS.values():
            return f"a weight is in {module.format}"
    elif isinstance(module, nn.Linear | nn.Embedding):
        weight, columns = module.weight, module.weight.shape[1]
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"a weight is {str(weight.dtype).removeprefix('torch.')}"
    else:
        return f"a layer is a {type(module).__name__}"
    if weight.device.type != "cpu":
        return f"the model is on {weight.device.type}"
    if columns % GROUP or not weight.is_contiguous():
        return f"a weight's width is not a multiple of {GROUP}"
    return None


def lay_in_tiles(network: Any) -> None:
    """Brings the weights of a network that has a compiled step into the order in which it reads them, as it would."""
    _lay_in_tiles(form_of(network))


def _lay_in_tiles(form: DecoderForm) -> None:
    """Brings weights that are multiplied by codes into tiles; an embedding that is tied to the head goes with it.

    Those of a layer stand side by side in the order in which it reads them.
    """
    given = [*(layer.weights for layer in form.layers), (WeightRows(form.head),)]
    cut = {id(r.module) for weights in given for r in weights if r.start % TILE or (r.stop or 0) % TILE}
    table, head = form.embedding, form.head
    tied = isinstance(table, PackedEmbedding) and isinstance(head, PackedLinear)
    tied = tied and table.packed.is_set_to(head.packed)
    for weights in given:
        modules = {id(rows.module): rows.module for rows in weights if id(rows.module) not in cut}
        laid = {m: m.room_for_tiles() for m in modules.values() if isinstance(m, PackedLinear) and m.int8}
        room, at = gate.room(sum(laid.values())), 0
        for module, size in laid.items():
            module.lay_in_tiles(room[at : at + size])
            at += size
        if at >= gate.LARGE:
            # Or what the rows stood in is kept for what is never asked for again, as much as a third of the weights.
            return_free_memory()
    if tied:
        table.tie(head)


class CompiledStep:
    """The compiled decoder of one model, over one cache.

    It reads the model's own tensors where they are: no copy of a weight is made, and it holds on to them. Weights that
    are multiplied by codes are first brought into tiles, each in the place of what it was (`hasten.kernels.tiles`).
    Where rotary positions of long texts turn otherwise than those of short ones (longrope), all texts in a cache that
    has room for long ones are turned as long ones are.

    Args:
        network: a transformers causal LM for which `why_not` is None.
        cache: where keys and values are and go: of a batch, or of sequences that share a pool of blocks.

    Raises:
        HastenError: the model cannot run compiled.
    """

    def __init__(self, network: Any, cache: KVCache | PagedCache) -> None:
        try:
            form = compiled_form(network)
        except HastenError as error:
            raise HastenError(f"this model has no compiled step: {error}") from None
        module = native()
        assert module is not None
        self._native = module
        self._kept: list[object] = [network, cache]
        _lay_in_tiles(form)
        self.vocabulary = form.head.out_features
        self._cache = cache
        self._hidden = form.hidden
        self._decoder = module.Decoder(
            form.hidden,
            form.intermediate,
            form.heads,
            form.kv_heads,
            form.head_dim,
            self.vocabulary,
            cache.capacity,
            form.scaling,
        )
        self._decoder.set_scales(
            form.embedding_scale, form.residual_scale, form.logit_scale, form.score_cap or 0.0, form.logit_cap or 0.0
        )
        for rotary in form.rotaries:
            cosines, sines = (self._keep(table) for table in rotary.table(cache.capacity))
            width = cosines.shape[1]
            places = (gate.address(t, torch.float32, cache.capacity, width) for t in (cosines, sines))
            self._decoder.add_rotary(*places, width)
        for layer in form.layers:
            self._decoder.add_layer(self._layer(layer, form))
        self._decoder.set_ends(
            self._matrix(form.embedding), self._matrix(form.head), self._norm(form.norm, form.hidden)
        )
        self._set_cache(cache)
        self._logits = gate.buffer(0, self.vocabulary)

    def _layer(self, layer: LayerForm, form: DecoderForm) -> object:
        made = self._native.Layer()
        made.attention_norm = self._norm(layer.attention_norm, form.hidden)
        made.attention_after = self._norm(layer.attention_after, form.hidden)
        made.feed_forward_norm = self._norm(layer.feed_forward_norm, form.hidden)
        made.feed_forward_after = self._norm(layer.feed_forward_after, form.hidden)
        made.query_norm = self._norm(layer.query_norm, form.heads * form.head_dim)
        made.key_norm = self._norm(layer.key_norm, form.kv_heads * form.head_dim)
        made.norm_together = layer.norm_together
        for name in ("query", "key", "value", "output"):
            setattr(made, name, self._rows(getattr(layer, name)))
        mlp = layer.feed_forward
        if isinstance(mlp, MixtureForm):
            made.mixture = self._mixture(mlp)
            # A clamped gate takes the place of the activation.
            made.activation = ACTIVATIONS[_ACTIVATIONS.get(mlp.activation, "silu")]
            mlp = mlp.beside
        if mlp is not None:
            for name in ("gate", "up", "down"):
                setattr(made, name, self._rows(getattr(mlp, name)))
            made.activation = ACTIVATIONS[mlp.activation]
        if layer.sinks is not None:
            made.sinks = self._vector(layer.sinks, form.heads)
        made.window = layer.window or 0
        made.rotary = -1 if layer.rotary is None else layer.rotary
        made.parallel = layer.parallel
        return made

    def _mixture(self, form: MixtureForm) -> object:
        made = self._native.Mixture()
        made.router = self._plain(form.router)
        for name, stack in zip(("gate", "up", "down"), form.stacks(), strict=True):
            setattr(made, name, self._stack(stack))
        made.top = form.top
        made.softmax_first, made.normed = form.kind.softmax_first, bool(form.kind.normed)
        if form.clamped is not None:
            made.alpha, made.limit = form.clamped
        if form.beside_router is not None:
            made.beside = self._matrix(form.beside_router)
        return made

    def _stack(self, stack: ExpertStack) -> object:
        self._kept.append(stack)
        return native_stack(
            stack.packed, stack.scales, stack.mins, stack.bits, stack.group, stack.bias, codes_in=stack.int8
        )

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _vector(self, tensor: Tensor, size: int) -> int:
        return gate.address(self._keep(tensor.detach().float().contiguous()), torch.float32, size)

    def _norm(self, norm: RowNorm | None, width: int) -> object:
        if norm is None:
            return self._native.Norm()
        bias = norm.bias(width)
        places = self._vector(norm.weight(width), width), 0 if bias is None else self._vector(bias, width)
        return self._native.norm(*places, norm.epsilon, norm.centred)

    def _rows(self, rows: WeightRows) -> object:
        return self._matrix(rows.module, slice(rows.start, rows.stop))

    def _matrix(self, module: nn.Module, rows: slice = slice(None)) -> object:
        """Some rows of a layer's weight: whole rows lie one after another in every format."""
        if isinstance(module, PackedLinear | PackedEmbedding):
            bias = getattr(module, "bias", None)
            bias = None if bias is None else self._keep(bias.detach().float().contiguous()[rows])
            parts, stop = (module.packed, module.scales, module.mins), rows.stop
            start = rows.start or 0
            if in_tiles(module.packed) and not start % TILE and not (stop or 0) % TILE:
                start, stop = start // TILE, None if stop is None else stop // TILE
            elif in_tiles(module.packed):
                parts = to_rows(*parts, module.bits)
            packed = self._keep(parts[0][start:stop])
            scales, mins = (None if t is None else self._keep(t[start:stop]) for t in parts[1:])
            codes = getattr(module, "int8", False)
            return native_matrix(packed, scales, mins, module.bits, module.group, bias, codes)
        assert isinstance(module, nn.Linear | nn.Embedding)
        return self._plain(module, rows)

    def _plain(self, module: nn.Module, rows: slice = slice(None)) -> object:
        """Some rows of a weight in fp32 or bf16, whatever the module is that has it."""
        assert isinstance(module.weight, Tensor)
        bias = getattr(module, "bias", None)
        bias = None if bias is None else self._keep(bias.detach().float().contiguous()[rows])
        weight = self._keep(module.weight.detach()[rows])
        bits = FORMATS["fp32" if weight.dtype is torch.float32 else "bf16"]
        return native_matrix(weight, None, None, bits, GROUP, bias)

    def _set_cache(self, cache: KVCache | PagedCache) -> None:
        policy = cache.spec.policy
        chosen = policy if isinstance(policy, BlockTopKPolicy) else None
        layers = []
        for layer in cache.layers:
            t, spec, ring = layer.tensors, layer.spec, layer.spec.ring
            # The last two sizes of codes are a block's own; plain keys stand token by token.
            blocks = t["keys"].shape[2] if spec.quantized else t["keys"].shape[2] // BLOCK
            # Fewer blocks than the ring would take: positions never wrap, and every place is its own.
            wraps = ring.ring_blocks and -(-cache.capacity // BLOCK) > ring.sink_blocks + ring.ring_blocks
            places = (ring.sink_blocks, ring.ring_blocks) if wraps else (0, 0)
            tensors = [gate.address(t[n], t[n].dtype, *t[n].shape) if n in t else 0 for n in BUFFERS]
            layers.append([*tensors, blocks, spec.window or 0, spec.sinks, *places])
        self._version = cache.version
        self._decoder.set_cache(
            cache.spec.bits,
            len(cache.lengths) if isinstance(cache, PagedCache) else cache.layers[0].tensors["keys"].shape[0],
            BLOCK,
            cache.recent,
            chosen.top if chosen else 0,
            chosen.local if chosen else 0,
            layers,
            cache.table_blocks if isinstance(cache, PagedCache) else 0,
        )

    def __call__(
        self,
        ids: list[int],
        sequences: list[int],
        positions: list[int],
        logits_from: int = 0,
        turns: list[int] | None = None,
        masks: list[int] | None = None,
        hidden: Tensor | None = None,
        answered: Sequence[int] | None = None,
    ) -> Tensor:
        """Runs one step: any number of rows, of any sequences, a prompt's piece beside single tokens of others.

        A row's result does not depend on the rows beside it. Where it is a quantized cache's, it depends on where the
        pieces of its own prompt began: what was committed before is read as codes.

        Args:
            ids: a token for each row.
            sequences: the row's sequence in the batch; a sequence's rows stand in order.
            positions: the row's position, from its sequence's committed length on.
            logits_from: rows before this one only enter the cache.
            turns: the rows' rotary positions, where tokens have left the cache or rows form a tree; None:
                ``positions``.
            masks: of a tree, for each row the bits of the rows of its sequence that it sees, the first one and itself
                among them; None: all before it.
            hidden: (answers or more, width) fp32, filled with the normed states that the head multiplies.
            answered: rows whose logits are wanted, in the order wanted; None: all from ``logits_from`` on.

        Returns:
            Logits (answers, vocabulary), fp32, valid until the next call. The cache's lengths are the caller's to
            advance.

        Raises:
            IndexError: a token, sequence, position or row that does not exist.
            ValueError: a bent block table, or two sequences that would write into one block.
        """
        rows, cache = len(ids), self._cache
        if self._version != cache.version:
            self._set_cache(cache)
        rows_in = torch.tensor((ids, sequences, positions, turns or positions), dtype=torch.int64)
        seen = None if masks is None else _bits(masks)
        state = torch.tensor((cache.lengths, cache.quantized), dtype=torch.int64)
        answers = torch.tensor(range(logits_from, rows) if answered is None else answered, dtype=torch.int64)
        wanted = len(answers)
        if self._logits.shape[0] < wanted:
            self._logits = gate.buffer(wanted, self.vocabulary)
        logits = self._logits[:wanted]
        given = [gate.address(row, torch.int64, rows) for row in rows_in]
        lengths = [gate.address(row, torch.int64, len(cache.lengths)) for row in state]
        width = self._hidden if hidden is not None else 0
        tables = cache.tables_for(sequences, positions) if isinstance(cache, PagedCache) else None
        self._decoder.step(
            *given,
            rows,
            gate.address(answers, torch.int64, wanted),
            wanted,
            *lengths,
            gate.address(logits, torch.float32, wanted, self.vocabulary),
            torch.get_num_threads(),
            gate.address(seen, torch.int64, rows),
            gate.address(None if hidden is None else hidden[:wanted], torch.float32, wanted, width),
            0 if tables is None else gate.address(tables, torch.int32, len(cache.lengths), tables.shape[1]),
        )
        return logits


def _bits(masks: list[int]) -> Tensor:
    """A tree's masks (rows,) as the compiled step reads them: without the root's bit, 64 bits each.

    Raises:
        ValueError: a row does not see the root, or there are more rows than bits.
    """
    if any(not mask & 1 for mask in masks):
        raise ValueError("a row of a tree sees its root")
    if any(mask >> MOST_TREE_ROWS for mask in masks):
        raise ValueError(f"a tree has at most {MOST_TREE_ROWS} rows")
    # The highest bit is the sign of a signed number.
    return torch.tensor([m - (1 << 64) if m >> 63 else m for m in (mask >> 1 for mask in masks)], dtype=torch.int64)
