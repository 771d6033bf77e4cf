"""Speculative decoding of a model whose feed-forward reads experts once for a whole draft."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.expert_ffn import FEW_TOKENS, used
from hasten.models.language.blockffn_lm import BlockFFNLM
from hasten.nn.blockffn import BlockFFN
from hasten.runtime.decoding.lookup import Index, PromptLookup


@dataclass(frozen=True)
class Speculated:
    """What speculative decoding made.

    Args:
        ids: the prompt and what follows (length), int64.
        steps: forward passes after the prompt's.
        tokens: made.
        experts: loads of an expert, over all layers and steps.
        without: what they would have been with every token alone.
    """

    ids: Tensor
    steps: int
    tokens: int
    experts: int
    without: int


@torch.inference_mode()
def speculate(model: BlockFFNLM, ids: Tensor, max_new_tokens: int, lookup: PromptLookup | None = None) -> Speculated:
    """Greedy text of a model, several tokens a step where a draft from the text itself is right.

    A draft and the token before it go through the model as one chunk, so the experts are read once for their union
    (arXiv 2507.08771, section 3.3). A token is kept where it is the model's own choice.

    Args:
        model: in evaluation mode.
        ids: one prompt (length).
        max_new_tokens: how many to make.
        lookup: how drafts are found; up to 7 tokens of the text itself when None.

    Raises:
        HastenError: an empty prompt, or a draft that is longer than the chunk kernel takes.
    """
    lookup = lookup or PromptLookup(draft=7)
    if ids.ndim != 1 or not len(ids):
        raise HastenError("the prompt is empty: give at least one token")
    if lookup.draft + 1 > FEW_TOKENS:
        raise HastenError(f"a chunk has at most {FEW_TOKENS} tokens: draft at most {FEW_TOKENS - 1}")
    layers = [m for m in model.modules() if isinstance(m, BlockFFN)]
    counts = [0, 0]

    def count(layer: BlockFFN, inputs: tuple[Tensor, ...]) -> None:
        scores, _ = layer.route(inputs[0])
        counts[0] += len(used(scores))
        counts[1] += int((scores != 0).sum())

    state = model.new_state(1)
    index = Index(lookup, ids.tolist())
    token = int(model(ids[None], state, logits_to_keep=1)[0, -1].argmax())
    index.extend([token])
    made, steps = [token], 0
    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        while len(made) < max_new_tokens:
            draft = index.draft(max_new_tokens - len(made) - 1)
            begin = len(ids) + len(made) - 1
            chosen = model(torch.tensor([[made[-1], *draft]]), state)[0].argmax(-1).tolist()
            right = 0
            while right < len(draft) and draft[right] == chosen[right]:
                right += 1
            # The draft's right tokens, and the model's own choice behind them.
            fresh = chosen[: right + 1]
            made += fresh
            index.extend(fresh)
            model.cut(state, begin + right + 1)
            steps += 1
    finally:
        for hook in hooks:
            hook.remove()
    whole = torch.cat([ids, torch.tensor(made[:max_new_tokens], dtype=torch.int64)])
    return Speculated(whole, steps, len(made), counts[0], counts[1])
