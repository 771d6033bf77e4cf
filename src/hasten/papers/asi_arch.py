"""AlphaGo Moment for Model Architecture Discovery."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="asi-arch",
    title="AlphaGo Moment for Model Architecture Discovery",
    arxiv="2507.18074",
    year=2025,
    field="architecture search",
    summary="Lets agents propose, train and judge new linear-attention layers in a closed loop.",
    claims=(
        Claim(
            "c1",
            "autonomous experiments / discoveries",
            "1773 / 106",
            baseline="human",
            setting="20 000 GPU h",
            how="none",
        ),
        Claim("c2", "cumulative discoveries vs compute", "near-linear"),
        Claim(
            "c3",
            "340 M, 15 B tokens: mean of 8 tasks",
            "PathGateFusionNet 48.51",
            baseline="Mamba2 47.84, Gated DeltaNet 47.32",
            how="none",
        ),
        Claim("c4", "final candidates keep parameter range", "400-600 M, no growth over time"),
        Claim(
            "c5",
            "origin of ideas",
            "all: 51.7 % literature, 38.2 % analysis, 10.1 % original; top set: 44.8 % analysis",
            how="none",
        ),
        Claim(
            "c6",
            "gated multi-path beats plain DeltaNet in loss",
            "lower loss at step 2000",
            baseline="DeltaNet",
            setting="same budget",
        ),
    ),
)
