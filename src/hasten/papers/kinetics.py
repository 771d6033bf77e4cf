"""Kinetics: Rethinking Test-Time Scaling Laws."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="kinetics",
    title="Kinetics: Rethinking Test-Time Scaling Laws",
    arxiv="2506.05333",
    year=2025,
    field="inference",
    summary="Charges memory traffic in test-time scaling and recommends larger models with sparse attention.",
    claims=(
        Claim(
            "K1",
            "dominant cost",
            "attention, not parameters",
            baseline="FLOP view",
            setting="Qwen3, long CoT",
            how="model",
        ),
        Claim(
            "K2",
            "threshold",
            "scale model to ~14B first",
            baseline="small model + samples",
            setting="AIME24/25",
            how="none",
        ),
        Claim(
            "K3",
            "sparse vs dense accuracy at equal cost",
            "+60 points low cost, +5 high cost",
            baseline="dense",
            setting="AIME, Qwen3 incl. MoE",
        ),
        Claim(
            "K4",
            "resource for equal accuracy",
            "up to ~3x less when following the law",
            baseline="FLOP-optimal choice",
            setting="B200",
            how="model",
        ),
        Claim("K5", "B_opt, tokens_opt exponents", "1.18x / 1.74x per doubling", setting="block top-k"),
        Claim(
            "K6",
            "throughput of block top-k",
            "large, biggest for small models",
            baseline="dense paged",
            setting="32K, batch 256",
        ),
    ),
)
