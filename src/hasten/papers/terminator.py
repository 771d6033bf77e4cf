"""HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="terminator",
    title="HyperZ.Z.W Operator Connects Slow-Fast Networks for Full Context Interaction",
    arxiv="2401.17948",
    year=2024,
    field="vision",
    summary="Builds an image classifier without residuals from kernels that a slow network makes.",
    claims=(
        Claim(
            "Z1",
            "beats residual and state-space nets with fewer params on sMNIST, pMNIST, sCIFAR10, CIFAR10/100, STL10 (numbers not",
            "direction",
            baseline="S4, CCNN, ResNet",
            setting="100-200 epochs",
        ),
        Claim(
            "Z2",
            "faster convergence (fits within ~20 epochs on CIFAR10)",
            "direction",
            baseline="ResNet",
            setting="curve",
        ),
        Claim(
            "Z3", "zero-mean stable features without residuals", "property", baseline="BN ResNet", setting="all layers"
        ),
        Claim("Z4", "slow loss helps the slow net", "direction", baseline="without", setting="ablation"),
        Claim("Z5", "Kar3 suits this net", "direction", baseline="AdamW", setting="same epochs"),
        Claim("Z6", "1.3M-class CIFAR10 model", "~1.34M", baseline="ResNet-20 .27M, WRN", setting="count", how="model"),
    ),
)
