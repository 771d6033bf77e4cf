"""ALISA: Accelerating Large Language Model Inference via Sparsity-Aware KV Caching."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="alisa",
    title="ALISA: Accelerating Large Language Model Inference via Sparsity-Aware KV Caching",
    arxiv="2403.17312",
    year=2024,
    field="inference",
    summary="Attends to recent and recently important tokens only, and decides token by token whether keys and values stay in fast memory, move to slow memory or are computed again.",
    claims=(
        Claim("A1", "throughput", "up to 3x", baseline="FlexGen", setting="single GPU + CPU", how="model"),
        Claim("A2", "throughput", "up to 1.9x", baseline="vLLM", setting="same", how="model"),
        Claim("A3", "accuracy at 80% KV sparsity", "negligible loss for 7B-30B", baseline="dense", setting="LM + QA"),
        Claim("A4", "SWA better than local, strided at equal sparsity", "yes", baseline="local / strided attention"),
        Claim("A5", "INT8 KV", "negligible loss", baseline="fp16"),
        Claim(
            "A6",
            "recompute phase helps only when the host link is the bottleneck",
            "yes",
            baseline="II only",
            setting="long outputs, big batch",
            how="model",
        ),
    ),
)
