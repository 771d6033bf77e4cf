"""A step of latent attention over what is cached, without expanding it (DeepSeek-V2, arXiv 2405.04434, 2.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor as TorchTensor

from hasten.workload.operators.attention import attention
from hasten.workload.operators.call import Call
from hasten.workload.recorder import Recorder


def absorbed_attention(
    recorder: Recorder, query: TorchTensor, low: TorchTensor, turned: TorchTensor, weight: TorchTensor, plain: int
) -> TorchTensor:
    """What a traced step computes when each head's part of the expanding matrix goes to its query and its output.

    Args:
        recorder: of the traced call.
        query: (batch, heads, tokens, plain + rotary channels).
        low, turned: what is cached: latents (batch, 1, length, rank) and rotary channels of keys.
        weight: that would expand latents, (heads * (plain + value channels), rank).
        plain: channels of a head without position.

    Returns:
        (batch, tokens, heads, value channels).
    """
    heads, rank = query.shape[1], low.shape[-1]
    maps = weight.view(heads, -1, rank)
    folded = torch.einsum("bhpn,hnr->bhpr", query[..., :plain], maps[:, :plain])
    query = torch.cat((folded, query[..., plain:]), -1)
    mixed = query.new_empty(*query.shape[:-1], rank)
    arguments = {"query": query, "key": low, "value": low, "beside": turned}
    call = Call(recorder, "latent_attention", arguments, [mixed])
    attention(call, query, low, low, None, mixed, beside=turned)
    return torch.einsum("bhpr,hvr->bphv", mixed, maps[:, plain:])
