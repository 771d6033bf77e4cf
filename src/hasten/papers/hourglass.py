"""Rethinking the shape convention of an MLP."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="hourglass",
    title="Rethinking the shape convention of an MLP",
    arxiv="2510.01796",
    year=2025,
    field="vision",
    summary="Keeps the skip connection of an MLP at its wide end and computes through a narrow middle.",
    pieces=("hasten.nn:Hourglass",),
    claims=(
        Claim(
            "H1",
            "Pareto front, PSNR vs parameters",
            "Hourglass above at all budgets",
            baseline="conventional residual MLP",
            setting="denoise, SR, generative classification",
        ),
        Claim(
            "H2",
            "frozen lift ~ trained lift",
            "no loss (often fewer trainable parameters for equal quality)",
            baseline="trained W_in",
            setting="same",
        ),
        Claim(
            "H3",
            "scaling trend",
            "deeper, wider skip, narrower bottleneck",
            baseline="conventional widens d_h",
            setting="budget sweep",
        ),
        Claim(
            "H4",
            "weight traffic",
            "d_z d_x fewer stored weights",
            baseline="trained lift",
            setting="inference",
            how="model",
        ),
        Claim("H5", "ImageNet-32 / MNIST absolute PSNR", "tables", setting="GPU scale", how="none"),
        Claim("H6", "carries over to Transformers", "conjecture", how="none"),
    ),
)
