"""FlashKAT: Understanding and Addressing Performance Bottlenecks in the Kolmogorov-Arnold Transformer."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="flashkat",
    title="FlashKAT: Understanding and Addressing Performance Bottlenecks in the Kolmogorov-Arnold Transformer",
    arxiv="2505.13813",
    year=2025,
    field="training",
    summary="Finds why rational-activation transformers train slowly and accumulates their coefficient gradients in blocks.",
    pieces=(
        "hasten.nn:GRKAN",
        "hasten.models:KAT",
    ),
    claims=(
        Claim(
            "K1",
            "KAT is slower than ViT at equal FLOPs",
            "up to 123x",
            baseline="ViT",
            setting="training step, one GPU",
        ),
        Claim("K2", "training speed-up", "up to 86.5x", baseline="KAT", setting="ViT sizes T/S/B"),
        Claim("K3", "backward kernel alone", "> 100x", baseline="KAT kernel", setting="B 1024, N 197, d 768"),
        Claim(
            "K4",
            "coefficient-gradient rounding error",
            "about one order smaller",
            baseline="KAT",
            setting="fp32 vs fp64 reference",
        ),
        Claim(
            "K5",
            "accuracy unchanged",
            "74.6 / about 81 / 82.3 top-1, ViT-B 79.1",
            baseline="KAT, ViT",
            setting="ImageNet-1k 300 epochs",
            how="none",
        ),
        Claim(
            "K6",
            "bottleneck is memory stalls, not FLOPs",
            "time flat when FLOPs per element are raised several-fold",
            setting="profiling",
        ),
        Claim("K7", "parameters, FLOPs", "= ViT + 912", baseline="ViT", how="model"),
    ),
)
