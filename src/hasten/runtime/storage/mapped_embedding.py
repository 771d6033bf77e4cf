"""An embedding whose rows come from a map, such as an oblivious one: the rows lie sealed in memory that is watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.runtime.storage.oblivious_map import ObliviousMap

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8)


def _check_plain(embedding: nn.Embedding) -> None:
    scales = embedding.max_norm is not None
    if scales or type(embedding).forward is not nn.Embedding.forward:
        does = "scales its rows" if scales else "has a forward of its own"
        raise HastenError(f"{type(embedding).__name__} {does}: a mapped embedding gives rows as they are")


def _check_type(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise HastenError(f"rows of a mapped embedding are {names}, not {str(dtype).removeprefix('torch.')}")


class MappedEmbedding(nn.Module):
    """``torch.nn.Embedding`` over rows in a map, for inference: no gradients, and no weights in its state.

    Every id is one look-up, one that repeats as well: how many different ones a batch has is not seen either.

    Args:
        rows: id -> the row's bytes in ``dtype``, such as an `ObliviousMap` of all ids.
        num_embeddings, embedding_dim: of the table.
        dtype: of the rows.

    Shape:
        ids (...) to (..., embedding_dim), on the processor.

    Raises:
        HastenError: the map has another number of rows, or the dtype is none that rows have.
    """

    def __init__(
        self, rows: Mapping[int, bytes], num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        _check_type(dtype)
        if len(rows) != num_embeddings:
            raise HastenError(f"the map holds {len(rows):,} rows, and the embedding has {num_embeddings:,}")
        self.rows, self.num_embeddings, self.embedding_dim, self.dtype = rows, num_embeddings, embedding_dim, dtype

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding | Tensor, make: Callable[..., Mapping[int, bytes]] | None = None, **options: Any
    ) -> MappedEmbedding:
        """The rows of a table, put into a map.

        Args:
            embedding: the module, or its table (ids, width).
            make: given ``{id: bytes}`` and ``options``, makes the map; `ObliviousMap.of_rows` of the table when None.
            **options: of the map, such as ``pages="rows.bin"`` and ``trusted=0.5``.

        Raises:
            HastenError: a table of another shape or without rows, or an embedding that does more than look rows up.
        """
        if isinstance(embedding, nn.Embedding):
            _check_plain(embedding)
        table = embedding if isinstance(embedding, Tensor) else embedding.weight
        table = table.detach().cpu().contiguous()
        if table.dim() != 2 or not len(table):
            raise HastenError(f"a table is (ids, width), of one id at least, not {tuple(table.shape)}")
        _check_type(table.dtype)
        raw = table.view(torch.uint8).reshape(len(table), table.shape[1] * table.itemsize).numpy()
        rows: Mapping[int, bytes]
        if make is None:
            rows = ObliviousMap.of_rows(raw, **options)
        else:
            rows = make({i: row.tobytes() for i, row in enumerate(raw)}, **options)
        return cls(rows, len(table), table.shape[1], table.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        asked = ids.reshape(-1).tolist()
        if asked and not 0 <= min(asked) <= max(asked) < self.num_embeddings:
            raise IndexError(f"ids are between 0 and {self.num_embeddings - 1}")
        found = b"".join([self.rows[i] for i in asked])
        rows = (
            torch.from_numpy(np.frombuffer(bytearray(found), np.uint8)) if found else torch.empty(0, dtype=torch.uint8)
        )
        return rows.view(self.dtype).reshape(*ids.shape, self.embedding_dim)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {type(self.rows).__name__}"
