"""LowFormer: Hardware Efficient Design for Convolutional Transformer Backbones."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="lowformer",
    title="LowFormer: Hardware Efficient Design for Convolutional Transformer Backbones",
    arxiv="2409.03460",
    year=2024,
    field="vision",
    summary="Designs backbones by measured speed instead of operation counts, with attention at low resolution.",
    claims=(
        Claim("L1", "params/MACs", "table above", setting="224", how="model"),
        Claim("L2", "GPU throughput img/s B0/B1/B1.5/B3", "5988/4237/2739/1162", setting="A40, batch 200", how="model"),
        Claim("L3", "GPU latency ms B0/B1/B1.5/B3", ".30/.43/.66/1.55", setting="Titan RTX", how="model"),
        Claim(
            "L4",
            "MACs are a poor time proxy: depthwise conv gets far fewer MAC/s than dense",
            "direction",
            baseline="dense 3x3 at same MACs",
            setting="microbench",
        ),
        Claim(
            "L5",
            "fused MBConv not slower despite ~4.5x MACs at small C",
            "direction",
            baseline="unfused MBConv",
            setting="microbench",
        ),
        Claim(
            "L6",
            "Lowtention faster than full-width, full-resolution MHSA",
            "direction",
            baseline="plain MHSA",
            setting="same C,H,W",
        ),
        Claim(
            "L7",
            "B0 beats MobileOne-S2 by about 1 point with ~25% more throughput",
            "78.4",
            baseline="77.4",
            setting="ImageNet, GPU",
            how="none",
        ),
    ),
)
