"""TurboViT: Generating Fast Vision Transformers via Generative Architecture Search."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="turbovit",
    title="TurboViT: Generating Fast Vision Transformers via Generative Architecture Search",
    arxiv="2308.11421",
    year=2023,
    field="architecture search",
    summary="Learns a generator of architectures and finds a compact hierarchical vision transformer with it.",
    claims=(
        Claim(
            "T1",
            "params",
            ">2.47x fewer, same accuracy",
            baseline="FasterViT-0 31.4M, 82.1%",
            setting="ImageNet-1K 224",
            how="model",
        ),
        Claim(
            "T2",
            "FLOPs",
            ">3.4x fewer, +0.9 points",
            baseline="MobileViTv2-2.0 7.5G, 81.2%",
            setting="same",
            how="model",
        ),
        Claim(
            "T3",
            "low-latency inference",
            ">3.21x lower latency, >3.18x throughput",
            baseline="FasterViT-0",
            setting="batch 1, GPU",
            how="none",
        ),
        Claim(
            "T4",
            "GAS finds better U than hand design under the same requirements",
            "implied",
            baseline="Hiera-T scaled by width",
            setting="U",
        ),
    ),
)
