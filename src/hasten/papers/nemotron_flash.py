"""Nemotron-Flash: Towards Latency-Optimal Hybrid Small Language Models."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="nemotron-flash",
    title="Nemotron-Flash: Towards Latency-Optimal Hybrid Small Language Models",
    arxiv="2511.18890",
    year=2025,
    field="language",
    summary="Designs small language models for measured latency by scaling laws and a search over hybrid layers.",
    claims=(
        Claim(
            "N1",
            "average accuracy",
            "+5.5%",
            baseline="Qwen3-0.6B (for 1B), Qwen3-1.7B (for the larger)",
            setting="16 tasks",
            how="none",
        ),
        Claim(
            "N2",
            "decode latency",
            "1.9x / 1.3x lower",
            baseline="Qwen3-0.6B / 1.7B",
            setting="8k tokens, batch 1, H100/A100 + CUDA graph",
            how="model",
        ),
        Claim("N3", "throughput", "45.6x / 18.7x", baseline="same", setting="largest batch, long context", how="model"),
        Claim(
            "N4",
            "deep-thin is not latency-optimal",
            "frontier has an interior depth",
            baseline="fixed depth",
            setting="several budgets",
        ),
        Claim(
            "N5",
            "hybrid beats each pure stack at equal latency",
            "lower PPL",
            baseline="pure attention / Mamba2 / DeltaNet",
            setting="search",
        ),
        Claim(
            "N6",
            "weight norm improves final loss",
            "lower PPL at every size tried",
            baseline="AdamW with decay",
            setting="100B tokens",
        ),
        Claim("N7", "proxy ranks well", "Spearman ~0.89", baseline="full training"),
    ),
)
