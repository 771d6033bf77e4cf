"""Linear layers and embeddings with packed weights, in place of torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from hasten.kernels import gate
from hasten.kernels import packed_linear as kernel
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.packed_linear import GROUP
from hasten.kernels.tiles import TILE, in_tiles, room_for_tiles, takes_tiles, to_rows, to_tiles
from hasten.nn.block import PackedBlock


class PackedWeight(PackedBlock):
    """The storage of a packed weight: ``packed``, ``scales`` and ``mins`` as `hasten.kernels.packed_linear` has them.

    Args:
        rows: of the weight; several numbers for a stack of weights.
        columns, bits, group, device: as for `PackedLinear`.
    """

    packed: Tensor
    scales: Tensor | None
    mins: Tensor | None

    def __init__(
        self, rows: int | tuple[int, ...], columns: int, bits: int, group: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        rows = rows if isinstance(rows, tuple) else (rows,)
        self.bits = bits
        self.group = group
        stored = {32: torch.float32, 16: torch.bfloat16, 8: torch.int8, 4: torch.uint8}
        blocks = BLOCK_FORMATS.get(bits)
        if bits not in stored and blocks is None:
            raise ValueError(f"a weight has 4, 8, 16 or 32 bits or is of a block format, not {bits}")
        if bits in (4, 8) and (group % GROUP or columns % group):
            raise ValueError(f"a group of {group} must be a multiple of {GROUP} and divide {columns} columns")
        if blocks is not None and columns % blocks.columns:
            raise ValueError(f"blocks of {blocks.columns} ({blocks.name}) must divide {columns} columns")
        width = columns // 2 if bits == 4 else columns if blocks is None else columns // blocks.columns * blocks.nbytes
        self.register_buffer("packed", torch.zeros(*rows, width, dtype=stored.get(bits, torch.uint8), device=device))
        grouped = bits in (4, 8)
        scales = torch.zeros(*rows, columns // group, dtype=torch.float16, device=device) if grouped else None
        self.register_buffer("scales", scales)
        self.register_buffer("mins", torch.zeros_like(scales) if bits == 4 and scales is not None else None)

    def _start(self) -> None:
        for codes in (self.packed, self.scales, self.mins):
            if codes is not None:
                codes.zero_()

    def fill(self, packed: Tensor, scales: Tensor | None, mins: Tensor | None) -> None:
        """Uses these tensors as the weight, see `hasten.kernels.packed_linear`."""
        self.packed, self.scales, self.mins = gate.in_huge_pages(packed), scales, mins

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **options: Any) -> None:
        # int4 codes stand for themselves less 8 where a state has no mins.
        if self.bits == 4 and self.scales is not None and f"{prefix}scales" in state_dict:
            given = state_dict.get(f"{prefix}mins")
            self.mins = None if given is None else torch.zeros_like(self.scales) if self.mins is None else self.mins
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    @property
    def format(self) -> str:
        """Its name for people: ``int4``, ``16 bits``, ``q4_k``."""
        return kernel.format_name(self.bits)

    @property
    def weight(self) -> Tensor:
        """As `dequantize`, made anew each time: for modules that read a layer's weight themselves."""
        return self.dequantize()

    def dequantize(self) -> Tensor:
        """The weight in fp32, (rows, columns)."""
        return kernel.dequantize(self.packed, self.scales, self.mins, self.bits, self.group)


class _OneWeight(PackedWeight):
    """The storage of one packed weight, whose rows may stand in tiles."""

    def room_for_tiles(self) -> int:
        """Bytes that `lay_in_tiles` fills: none where the weight is in tiles, or cannot be."""
        rows, here = self.packed.shape[0], self.packed.device.type == "cpu"
        if in_tiles(self.packed) or not takes_tiles(self.bits) or self.group != GROUP or rows % TILE or not here:
            return 0
        return room_for_tiles(self.packed, self.scales, self.mins)

    def lay_in_tiles(self, room: Tensor | None = None) -> bool:
        """Brings the weight into tiles (`hasten.kernels.tiles`), if it can be; whether it is.

        What it stands for stays, and ``state_dict`` has it in rows: only compiled products of codes care.

        Args:
            room: memory that takes the weight, `room_for_tiles` bytes of uint8; None: tensors of its own.
        """
        if self.room_for_tiles():
            self.fill(*to_tiles(self.packed, self.scales, self.mins, self.bits, room))
        return in_tiles(self.packed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if in_tiles(self.packed):
            parts = to_rows(self.packed, self.scales, self.mins, self.bits)
            for name, part in zip(("packed", "scales", "mins"), parts, strict=True):
                if part is not None:
                    destination[prefix + name] = part

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any, **options: Any) -> None:
        if in_tiles(self.packed):
            self.fill(*to_rows(self.packed, self.scales, self.mins, self.bits))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


class PackedLinear(_OneWeight):
    """``y = x W^T + b`` with W packed in 16 (bf16), 8 or 4 bits, or in a file's blocks.

    See `hasten.kernels.packed_linear` for the formats.

    Codes, scales and bias keep their types under ``.to(dtype)`` and the like.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``; ``in_features`` a multiple of ``group``.
        bias: whether there is one.
        bits: 16, 8 or 4; 32 for fp32, or the number of a format of `hasten.kernels.block_formats`.
        group: columns that share a scale, a multiple of 32; ignored where the format has no choice.
        bf16: multiply many rows in bf16, see `hasten.kernels.packed_linear.packed_linear`.
        int8: round rows of x to int8 first, see there.
        device, dtype: as in ``torch.nn.Linear``; the dtype is the bias's, fp32 when None.

    Shape:
        x (..., in_features) to (..., out_features), in x's dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        bits: int = 4,
        group: int = GROUP,
        bf16: bool = False,
        int8: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_features, in_features, bits, group, device)
        self.in_features = in_features
        self.out_features = out_features
        self.bf16 = bf16
        self.int8 = int8
        made = torch.zeros(out_features, device=device, dtype=dtype or torch.float32) if bias else None
        self.bias = None if made is None else nn.Parameter(made, requires_grad=False)

    def _start(self) -> None:
        super()._start()
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, bits: int, group: int = GROUP, bf16: bool = False, int8: bool = False
    ) -> PackedLinear:
        """Packs ``linear``'s weight; on the meta device only the shapes.

        Raises:
            ValueError: ``in_features`` is not a multiple of ``group``.
            HastenError: a weight is not finite, or larger than the format reaches.
        """
        device = linear.weight.device
        with torch.device("meta"):
            layer = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                bits=bits,
                group=group,
                bf16=bf16,
                int8=int8,
            )
        layer = layer.to_empty(device=device)
        if device.type != "meta":
            layer.fill(*kernel.quantize(linear.weight.detach(), bits, group))
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        y = kernel.packed_linear(x, self.packed, self.scales, self.mins, self.bits, self.group, self.bf16, self.int8)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        packing = f"bits={self.bits}" if self.bits <= 32 else f"format={self.format}"
        group = f", group={self.group}" if self.bits < 16 else ""
        return f"{self.in_features}, {self.out_features}, {packing}{group}, bias={self.bias is not None}"


class PackedEmbedding(_OneWeight):
    """A table of ``num_embeddings`` packed rows.

    Args:
        num_embeddings, embedding_dim, bits, group: as for `PackedLinear`.
        scale: a number, or a tensor of one, that rows are multiplied by (Gemma's embedding); None for none.
        device: as in ``torch.nn.Embedding``.
        dtype: of the rows that it gives, fp32 when None; ``.to(dtype)`` changes it.

    Shape:
        ids (...) to (..., embedding_dim).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int = 8,
        group: int = GROUP,
        scale: float | Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, bits, group, device)
        # A number: no state holds it, so nothing may lose it.
        self.embed_scale = None if scale is None else float(scale)
        self.dtype = dtype or torch.float32
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, bits: int, group: int = GROUP) -> PackedEmbedding:
        """Packs ``embedding``'s table; on the meta device only the shapes."""
        device = embedding.weight.device
        with torch.device("meta"):
            table = cls(embedding.num_embeddings, embedding.embedding_dim, bits=bits, group=group)
        table = table.to_empty(device=device)
        if device.type != "meta":
            table.fill(*kernel.quantize(embedding.weight.detach(), bits, group))
        return table.train(embedding.training)

    def tie(self, head: PackedLinear) -> PackedEmbedding:
        """Shares the head's storage, as tied weights do; returns self."""
        self.bits, self.group = head.bits, head.group
        self.fill(head.packed, head.scales, head.mins)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        rows = kernel.packed_embedding(ids, self.packed, self.scales, self.mins, self.bits, self.group)
        return (rows if self.embed_scale is None else rows * self.embed_scale).to(self.dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}"
