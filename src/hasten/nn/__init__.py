"""Blocks: ordinary ``torch.nn.Module`` parts from the literature."""

from hasten.nn.packed import PackedEmbedding, PackedLinear

__all__ = ["PackedEmbedding", "PackedLinear"]
