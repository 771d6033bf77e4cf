"""Efficient Architecture Search by Network Transformation."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="eas",
    title="Efficient Architecture Search by Network Transformation",
    arxiv="1707.04873",
    year=2017,
    field="architecture search",
    summary="Grows a trained network by moves that keep its function, steered by a learned controller.",
    claims=(
        Claim(
            "c1",
            "error, plain CNN, C10+",
            "4.23 % (repo: 95.77 %",
            baseline="ResNet-110 6.61, plain nets",
            setting="5 GPUs",
        ),
        Claim("c2", "error, plain CNN, SVHN", "1.73 % (98.27 %", how="none"),
        Claim(
            "c3",
            "DenseNet space, C10+ / C10",
            "3.44 % (10.7 M) / 4.66 % (96.56, 95.34 %; sizes memory)",
            baseline="DenseNet-BC 3.46 (25.6 M) / 5.19 (15.3 M)",
            how="model",
        ),
        Claim(
            "c4",
            "RL controller beats random growth",
            "higher mean and max val accuracy (figure)",
            baseline="random, same action counts",
        ),
        Claim("c5", "reuse of weights saves training", "20 epochs enough", baseline="training from scratch"),
        Claim("c6", "search cost", "about 10 GPU-days (2 days x 5)", baseline="NAS 800 GPUs x 28 days", how="model"),
    ),
)
