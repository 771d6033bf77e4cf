"""AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="ascan",
    title="AsCAN: Asymmetric Convolution-Attention Networks for Efficient Recognition and Generation",
    arxiv="2411.04967",
    year=2024,
    field="vision",
    summary="Places convolutions early and attention late, unevenly, in one backbone for recognition and generation.",
    claims=(
        Claim(
            "A1",
            "top-1 / params / MACs T,B,L",
            "83.4/55M/7.7G ...",
            baseline="FasterViT-1 83.2/53M/5.3G, MaxViT-T 83.6/31M/5.6G",
            setting="ImageNet 224",
            how="none",
        ),
        Claim(
            "A2",
            "asymmetric beats symmetric in accuracy at higher throughput",
            "direction",
            baseline="symmetric C/T layout",
            setting="equal blocks or equal MACs",
        ),
        Claim(
            "A3",
            "vanilla attention in late stages still faster than windowed/linear hybrids",
            "direction",
            baseline="MaxViT, CoAtNet, FasterViT",
            setting="measured throughput, equal accuracy class",
        ),
        Claim(
            "A4", "ADE20K mIoU 50.3 (largest listed)", "50.3", baseline="Swin/FasterViT", setting="UPerNet", how="none"
        ),
        Claim(
            "A5", "class-conditional ImageNet 256 gFID", "2.23", baseline="DiT, U-ViT", setting="guidance", how="none"
        ),
        Claim("A6", "GenEval overall", "0.64", baseline="SDXL-class", setting="text-to-image", how="none"),
    ),
)
