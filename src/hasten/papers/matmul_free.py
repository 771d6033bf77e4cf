"""Scalable MatMul-free Language Modeling."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="matmul-free",
    title="Scalable MatMul-free Language Modeling",
    arxiv="2406.02528",
    year=2024,
    field="language",
    summary="A language model of ternary weights and element-wise recurrence that needs no matrix product.",
    pieces=(
        "hasten.nn:BitLinear",
        "hasten.nn:MLGRU",
    ),
    claims=(
        Claim(
            "B1",
            "zero-shot average",
            "40.3 / 46.2 / 49.9",
            baseline="Transformer++ 41.1 / 48.0 / 50.7",
            setting="370M / 1.3B / 2.7B",
            how="none",
        ),
        Claim("B2", "gap narrows with size", "steeper scaling fit", baseline="Transformer++", setting="370M-2.7B"),
        Claim(
            "B3",
            "fused BitLinear training",
            "25.6% faster, 61% less memory (82 -> 32 GB)",
            baseline="unfused BitLinear",
            setting="1.3B, batch 28",
        ),
        Claim(
            "B4",
            "inference memory and latency",
            "4.19 GB, 695 ms",
            baseline="Transformer++ 48.5 GB, 3183 ms",
            setting="13B",
            how="model",
        ),
        Claim("B5", "memory ratio", "> 10x", baseline="fp16", setting="inference", how="model"),
        Claim("B6", "FPGA", "13 W, faster than reading", setting="1.3B", how="model"),
        Claim("B7", "higher lr is needed", "optimum an order above Transformer", setting="370M"),
    ),
)
