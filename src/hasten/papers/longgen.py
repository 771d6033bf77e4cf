"""A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="longgen",
    title="A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts",
    arxiv="2410.01485",
    year=2024,
    field="inference",
    summary="Gives a pretrained model long context and sparse outer layers in one light fine-tuning.",
    claims=(
        Claim(
            "G1",
            "training speedup",
            "1.55x, 36% less wall-clock (1-1/1.55 = 35.5%)",
            baseline="full attention",
            setting="128K, 7B",
            how="model",
        ),
        Claim("G2", "KV memory", "-62%", baseline="full", setting="128K", how="model"),
        Claim("G3", "prefill", "1.67x", baseline="full", setting="128K", how="model"),
        Claim("G4", "decode", "1.41x", baseline="full", setting="128K", how="model"),
        Claim(
            "G5",
            "quality: NIAH / BABILong / RULER near or above the fully-attending model, all-sparse and inference-only sparsity fail",
            "yes",
            setting="4K->128K, 5B tokens",
        ),
        Claim("G6", "middle placement is best; about 1/3 full layers suffices", "yes", baseline="other placements"),
    ),
)
