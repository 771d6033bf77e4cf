"""The few primitives that must be fast.

Each is one ``torch.library`` operator of the namespace ``hasten`` with a plain torch reference, a compiled
CPU version, a fake implementation for tracing, and autograd where training needs it. Without the compiled
part everything still works, slower, and says so once.
"""

from hasten.kernels import (
    associative_scan,
    expert_ffn,
    kv_cache,
    packed_linear,
    rational,
    selective_scan,
    ternary_linear,
)
from hasten.kernels.compiled import compiled_isa, native

__all__ = [
    "associative_scan",
    "compiled_isa",
    "expert_ffn",
    "kv_cache",
    "native",
    "packed_linear",
    "rational",
    "selective_scan",
    "ternary_linear",
]
