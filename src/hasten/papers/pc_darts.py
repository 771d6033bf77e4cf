"""PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="pc-darts",
    title="PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search",
    arxiv="1907.05737",
    year=2019,
    field="architecture search",
    summary="Searches on a part of the channels at a time, with weights on edges for stability.",
    claims=(
        Claim(
            "c1",
            "CIFAR-10 error",
            "2.57 % at 3.6 M",
            baseline="DARTS-V1 3.00, V2 2.76 at 3.3 M",
            setting="cutout",
            how="model",
        ),
        Claim("c2", "search cost CIFAR", "0.1 GPU-day", baseline="DARTS-V1 0.4, V2 1.0", setting="1080Ti"),
        Claim(
            "c3",
            "ImageNet top-1 error",
            "24.2 %, 597 M FLOPs, 3.8 GPU-day",
            baseline="DARTS 26.7 %",
            setting="mobile",
            how="model",
        ),
        Claim("c4", "memory", "< 4 GB at batch 64", baseline="about 12 GB DARTS"),
        Claim(
            "c5",
            "both parts help",
            "error 2.57 with PC+EN, 2.67 PC only",
            baseline="DARTS 3.00",
            setting="CIFAR-10, mean of runs",
        ),
        Claim("c6", "K=4 best cost/error trade-off", "CIFAR-10", baseline="K=1,2,8", setting="CIFAR-10"),
        Claim(
            "c7",
            "stability over repeated searches",
            "std about 0.07",
            baseline="DARTS std about 0.14",
            setting="CIFAR-10",
        ),
    ),
)
