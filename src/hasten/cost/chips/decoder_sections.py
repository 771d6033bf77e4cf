"""A decoder's layers on a streaming chip: a task at a time and in sections, by either way to launch them."""

from __future__ import annotations

from hasten.cost.chips.sections import LAUNCHERS, SectionsCost, plan_sections, unfused_sections
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import StreamingChip
from hasten.workload.language import language_model
from hasten.workload.streaming import work_graph

# (layers, hidden, inner, heads, key and value heads) of models of SN40L's evaluation, from their public configurations.
_SIZES = {
    "llama-2-7b": (32, 4096, 11008, 32, 32),
    "mistral-7b": (32, 4096, 14336, 32, 8),
    "llama-2-70b": (80, 8192, 28672, 64, 8),
}
LAYERED_MODELS = tuple(_SIZES)
"""Names of the models whose layers are known."""


def layer_costs(model: str, chip: StreamingChip, *, prompt: int = 4096) -> dict[str, dict[str, SectionsCost]]:
    """``prefill`` and ``decode`` -> ``unfused software``, ``fused hardware`` and so on -> cost of all layers, in bf16.

    Each layer is cut as the first one is. A table of 128 tokens, where a model has tens of thousands, goes with it:
    what is no layer's is nearly left out.

    Args:
        model: one of `LAYERED_MODELS`.
        chip: where.
        prompt: tokens of the prompt, and behind which the token is.

    Raises:
        HastenError: an unknown model.
    """
    if model not in _SIZES:
        raise HastenError(f"no sizes of {model[:40]!r} are known: use {', '.join(LAYERED_MODELS)}")
    layers, hidden, inner, heads, kv_heads = _SIZES[model]
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "vocab_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
    }  # fmt: skip
    found: dict[str, dict[str, SectionsCost]] = {}
    for phase in language_model(config, prompt=prompt, new_tokens=1, dtype="bf16").phases:
        graph = work_graph(phase, model, grain="kernel", dtype="bf16")
        found[phase.name] = {}
        for launcher in LAUNCHERS:
            plans = {"unfused": unfused_sections(graph, chip), "fused": plan_sections(graph, chip, launch=launcher)}
            costs = {f"{name} {launcher}": plan.cost(launcher, layers) for name, plan in plans.items()}
            found[phase.name] |= costs
    return found
