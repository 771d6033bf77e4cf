"""Keys and values kept in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BITS, BLOCK
from hasten.methods.described_cache import cache_of, channels, keeps_keys, with_cache
from hasten.methods.method import Method
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Workload


@dataclass(frozen=True)
class CacheFormat(Method):
    """A key-value cache in fp16, bf16, int8 or int4: keys grouped along tokens, values along channels (KIVI).

    Of int8 and int4, the newest 32 to 64 tokens stay in fp32.

    Args:
        dtype: ``fp16``, ``bf16``, ``int8`` or ``int4``.
    """

    name: ClassVar[str] = "cache-format"
    kind: ClassVar[str] = "cache"
    order: ClassVar[int] = 30
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"kv-{dtype}": {"dtype": dtype} for dtype in ("int8", "int4", "fp16", "bf16")
    }
    source: ClassVar[str] = "KIVI, arXiv 2402.02750"

    dtype: str = "int8"

    def __post_init__(self) -> None:
        if self.dtype not in BITS or self.dtype == "fp32":
            raise HastenError(f"a cache format is fp16, bf16, int8 or int4, not {self.dtype!r}")

    @property
    def title(self) -> str:
        return f"{self.dtype} cache"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, LanguageModel):
            return "it is not a language model with a cache"
        if model.cache.dtype != "fp32":
            return f"its cache is {model.cache.dtype} already"
        width = int(model.decoder.layer(0).attention.head_dim)
        if BITS[self.dtype] < 16 and width % BLOCK:
            return f"its heads have {width} channels, not a multiple of {BLOCK}"
        return None

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.cache = replace(model.cache, dtype=self.dtype)
        return model

    def why_not_described(self, workload: Workload) -> str | None:
        if not keeps_keys(workload):
            return "it keeps no keys and values from step to step"
        known = str(cache_of(workload).dtype)
        if BITS[known] <= BITS[self.dtype] and (known == self.dtype or BITS[known] < 16):
            return f"its cache is {known} already"
        odd = [width for width in channels(workload) if width % BLOCK]
        if BITS[self.dtype] < 16 and odd:
            return f"its heads have {odd[0]} channels, not a multiple of {BLOCK}"
        return None

    def rewrite(self, workload: Workload) -> Workload:
        return with_cache(workload, replace(cache_of(workload), dtype=self.dtype))

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls("int8"), cls("int4")]
