"""Make Deep Networks Shallow Again."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="shallow",
    title="Make Deep Networks Shallow Again",
    arxiv="2309.08414",
    year=2023,
    field="training",
    summary="Rewrites a deep residual stack as one wide shallow layer of about equal quality.",
    claims=(
        Claim("H1", "mean loss train/val by Q bin, MNIST", "see table", baseline="sequential", setting="all configs"),
        Claim("H2", "same, CIFAR10", "see table", baseline="sequential", setting="all configs", how="none"),
        Claim(
            "H3",
            "sequential slightly lower training loss, parallel equal or lower validation loss when Q<3 (CIFAR10)",
            "table",
            baseline="sequential",
        ),
        Claim(
            "H4",
            "shallow form is faster per step on parallel hardware",
            "argument",
            baseline="sequential",
            setting="wall clock",
        ),
    ),
)
