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
        Claim("", "Q [0,1)", "[1,3)", baseline="[3,10)", setting="[10,inf)", how="none"),
        Claim(
            "MNIST seq", ".00013/.05201", ".01702/.12449", baseline=".03620/.11743", setting=".11246/.13550", how="none"
        ),
        Claim(
            "MNIST par", ".00009/.07551", ".02679/.11468", baseline=".05238/.11467", setting=".13310/.14900", how="none"
        ),
        Claim(
            "CIFAR10 seq",
            ".25326/2.03107",
            ".72510/1.31691",
            baseline="1.07333/1.34721",
            setting="1.58608/1.65354",
            how="none",
        ),
        Claim(
            "CIFAR10 par",
            ".52658/1.32386",
            ".88701/1.24884",
            baseline="1.17085/1.34227",
            setting="1.63449/1.68879",
            how="none",
        ),
    ),
)
