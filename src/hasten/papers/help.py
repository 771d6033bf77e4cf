"""HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="help",
    title="HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning",
    arxiv="2106.08630",
    year=2021,
    field="cost models",
    summary="Predicts latency on a new device from ten measurements by meta-learning over many devices.",
    pieces=("hasten.cost.help",),
    claims=(
        Claim(
            "H1",
            "mean Spearman, 6 unseen devices, 10 samples",
            "0.932 (RTX .987, CPU .989, Pixel2 .802, Raspi .890, ASIC .940, FPGA .985)",
            baseline="BRP-NAS 900 samples 0.789; FLOPs 0.787",
            setting="NB201",
        ),
        Claim(
            "H2",
            "mean Spearman raspi4/ASIC/FPGA",
            "0.910 (.887/.943/.892)",
            baseline="MAML 0.736, Meta-SGD 0.806",
            setting="FBNet",
        ),
        Claim("H3", "measurements to reach it", "10", baseline="900-3200"),
        Claim(
            "H4",
            "constrained NAS meets target",
            "e.g. Gold 6226: target 8/11/14 ms -> 8.0/10.7/14.3 ms, acc 67.3/70.2/72.1",
            setting="NB201+MetaD2A",
        ),
        Claim(
            "H5",
            "OFA Titan RTX: 20/23/28 ms -> 20.3/23.1/28.6 ms, top-1 76.0/76.8/77.9",
            "no (ImageNet supernet absent)",
            baseline="OFA",
            setting="no (ImageNet supernet absent)",
            how="none",
        ),
        Claim(
            "H6",
            "total search cost",
            "reduced by orders of magnitude since no per-device LUT",
            baseline="per-device predictor",
        ),
    ),
)
