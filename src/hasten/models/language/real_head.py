"""Queries, keys and values of a trained head on real text, for what computes attention in another way."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from hasten.data.text import default_text
from hasten.models.loading.network import load_network

Array: TypeAlias = npt.NDArray[np.float64]


@lru_cache(maxsize=2)
def real_head(tokens: int = 512) -> tuple[Array, Array, Array]:
    """Scaled queries, keys and values of a head in the middle of SmolLM2, on real text."""

    class Catch(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[Any, ...]] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.scaled_dot_product_attention:
                self.seen.append(tuple(args[:3]))
            return func(*args, **(kwargs or {}))

    loaded = load_network()
    ids = torch.tensor([loaded.tokenizer.encode(default_text()[:20_000])[:tokens]])
    with torch.inference_mode(), Catch() as catch:
        loaded.network(ids)
    q, k, v = (t[0, 0].to(torch.float64).numpy() for t in catch.seen[len(catch.seen) // 2])
    return np.ascontiguousarray(q / math.sqrt(q.shape[1])), k, v
