"""Changes to a given model: each is applied to the real module and to its description alike."""

from hasten.methods.cache_format import CacheFormat
from hasten.methods.drop_layers import DropLayers
from hasten.methods.method import (
    Context,
    Method,
    apply_all,
    clash,
    from_dict,
    ordered,
    registry,
    rewrite_all,
    unwritable,
)
from hasten.methods.prompt_lookup import LookupDecoding
from hasten.methods.sliding_window import HybridWindow, LambdaWindow, SlidingWindow
from hasten.methods.sparse_low_bit import SparseLowBit
from hasten.methods.token_selection import BlockTopK, SnapKV, SparseWindow
from hasten.methods.two_of_four import TwoOfFour
from hasten.methods.weight_only import WeightOnly

__all__ = [
    "BlockTopK",
    "CacheFormat",
    "Context",
    "DropLayers",
    "HybridWindow",
    "LambdaWindow",
    "LookupDecoding",
    "Method",
    "SlidingWindow",
    "SnapKV",
    "SparseLowBit",
    "SparseWindow",
    "TwoOfFour",
    "WeightOnly",
    "apply_all",
    "clash",
    "from_dict",
    "ordered",
    "registry",
    "rewrite_all",
    "unwritable",
]
