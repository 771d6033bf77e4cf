"""A Multigrid Method for Efficiently Training Video Models."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="multigrid",
    title="A Multigrid Method for Efficiently Training Video Models",
    arxiv="1912.00998",
    year=2019,
    field="training",
    summary="Varies the shape of video batches during training at constant cost.",
    claims=(
        Claim(
            "M1",
            "wall-clock to train / top-1",
            "4.5x faster, +0.8 %",
            baseline="standard fixed shape",
            setting="SlowFast-R50, Kinetics-400",
            how="model",
        ),
        Claim(
            "M2",
            "release re-implementation top-1",
            "76.6 (92.7 top-5)",
            baseline="76.8 (92.7)",
            setting="same model, stepwise lr",
            how="none",
        ),
        Claim(
            "M3",
            "SSv2 top-1, Charades mAP (release)",
            "63.5; 38.6",
            baseline="63.0; 38.9",
            setting="Kinetics pre-trained",
            how="none",
        ),
        Claim("M4", "training speed range", "3-6x", baseline="standard", setting="several sets/models", how="model"),
        Claim(
            "M5", "short + long > either alone", "both best", baseline="ablation", setting="run ordering", how="none"
        ),
        Claim("M6", "works on 1 GPU", "about 3x (second-hand)", baseline="standard"),
    ),
)
