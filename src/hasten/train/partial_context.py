"""What sparse layers save beside full ones (LongGen, arXiv 2410.01485): products counted, and whole layers timed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hasten.cost.measuring import alternating
from hasten.models.language.llama import small_llama
from hasten.nn.block_sparse import Pattern, convert
from hasten.train.loop import descend
from hasten.workload.decoder import DecoderSizes


def flops_ratio(
    sizes: DecoderSizes, pattern: Pattern, full: int, length: int, *, block: int = 64, backward: bool = False
) -> float:
    """How many times fewer FLOPs a decoder takes for a token when all layers but ``full`` of them are sparse.

    Args:
        sizes: of the decoder.
        pattern: of the sparse layers; of its first head.
        full: layers that stay full.
        length: tokens of the text.
        block: tokens of a block.
        backward: count training, not reading alone: twice the forward products again, and for attention, which computes
            its scores anew, two and a half times.
    """
    linear = 2 * sizes.layer_parameters
    # Half of the own block is read on average; two products, multiply and add. One block in 16 stands for its like.
    asked = range(0, length // block, 16)
    keys = sum(len(pattern.blocks(0, i)) - 0.5 for i in asked) * block / len(asked)
    dense, sparse = (4 * sizes.query_width * n for n in (length / 2, keys))
    products, attention = (3.0, 3.5) if backward else (1.0, 1.0)
    mixed = full * dense + (sizes.layers - full) * sparse
    return (products * linear + attention * sizes.layers * dense) / (products * linear + attention * mixed)


def layer_call(length: int, pattern: Pattern | None, *, training: bool, seed: int = 0) -> Callable[[], object]:
    """One call of a whole decoder layer of SmolLM2-135M's shape with fresh weights, on one text.

    Args:
        length: tokens of the text.
        pattern: of its attention; None for full attention.
        training: whether a call is a step of training: forward, backward, and AdamW's update.
        seed: of weights and text.
    """
    torch.manual_seed(seed)
    network = small_llama(8, width=576, layers=1, heads=9, kv_heads=3, inner=1536, positions=length)
    network.config._attn_implementation = "sdpa"
    if pattern is not None:
        convert(network, pattern, ())
    states = torch.randn(1, length, 576)
    model = network.model
    optimizer = torch.optim.AdamW(model.layers.parameters(), lr=1e-3)

    def step() -> object:
        if not training:
            with torch.inference_mode():
                return model(inputs_embeds=states, use_cache=False)
        loss = model(inputs_embeds=states, use_cache=False).last_hidden_state.square().mean()
        return descend(optimizer, loss)

    return step


def layer_ratio(
    length: int, pattern: Pattern, share: float, *, training: bool, rounds: int = 2, seed: int = 0
) -> float:
    """How many times as fast a model is whose layers but ``share`` of them are sparse, measured on one layer of each.

    Args:
        length, pattern, training, seed: see `layer_call`.
        share: of the layers that stay full.
        rounds: in which the two are timed in turn; the fastest counts.
    """
    calls = {
        name: layer_call(length, p, training=training, seed=seed) for name, p in (("full", None), ("sparse", pattern))
    }
    full, sparse = (min(times) for times in alternating(calls, rounds).values())
    return full / (share * full + (1 - share) * sparse)
