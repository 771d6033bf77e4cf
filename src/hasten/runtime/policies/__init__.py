"""Which cached tokens a new token attends to, chosen while decoding or once after the prompt.

A policy stands in `hasten.runtime.CacheSpec` and sees every layer's queries and cached keys. What decides at every step
keeps the whole cache and reads a part of it (`BlockTopKPolicy`, `TopK`, `SparseWindowPolicy`, `Strided`,
`StridedBlocks`, `RandomTokens`, `LocalShare`, `LocalWindow`); `SnapKVPolicy`, `RandomKeep` and `KeepEnds` drop tokens
once, after the prompt. Prompts are read with full attention. Three of them are methods too (`BlockTopK`, `SnapKV` and
`SparseWindow` of `hasten.methods`): the same class, with a name, a title and what is worth trying.
"""

from hasten.runtime.policies.attending import attend, weights
from hasten.runtime.policies.block_topk import BlockTopKPolicy
from hasten.runtime.policies.controls import KeepEnds, RandomKeep
from hasten.runtime.policies.local import LocalShare, LocalWindow
from hasten.runtime.policies.policy import Policy, PolicyCache, PolicyLayer
from hasten.runtime.policies.random_tokens import RandomTokens
from hasten.runtime.policies.snapkv import SnapKVPolicy
from hasten.runtime.policies.sparse_window import SparseWindowPolicy
from hasten.runtime.policies.strided import Strided, StridedBlocks
from hasten.runtime.policies.topk import TopK

__all__ = [
    "BlockTopKPolicy",
    "KeepEnds",
    "LocalShare",
    "LocalWindow",
    "Policy",
    "PolicyCache",
    "PolicyLayer",
    "RandomKeep",
    "RandomTokens",
    "SnapKVPolicy",
    "SparseWindowPolicy",
    "Strided",
    "StridedBlocks",
    "TopK",
    "attend",
    "weights",
]
