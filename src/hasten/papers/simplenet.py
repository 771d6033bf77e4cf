"""Lets keep it simple, Using simple architectures to outperform deeper and more complex architectures."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="simplenet",
    title="Lets keep it simple, Using simple architectures to outperform deeper and more complex architectures",
    arxiv="1608.06037",
    year=2016,
    field="vision",
    summary="A plain convolutional network from explicit design rules that rivals deeper ones.",
    claims=(
        Claim(
            "S1",
            "CIFAR10 acc",
            "95.32 aug / 94.75 none (PyTorch 95.51)",
            baseline="ResNet-110 93.57, VGG16 91.4/92.45",
            setting="5.48M",
            how="none",
        ),
        Claim(
            "S2",
            "CIFAR100 acc",
            "73.42/74.86 (PyTorch 78.37)",
            baseline="ResNet-110 74.84",
            setting="5.48M",
            how="none",
        ),
        Claim(
            "S3",
            "MNIST err / SVHN err",
            "0.25% / 1.79%",
            baseline="NIN .45, DSN .39 / WRN 1.64",
            setting="5.48M; 310K gets 99.72 MNIST",
        ),
        Claim(
            "S4",
            "310K net CIFAR10",
            "91.98",
            baseline="ALL-CNN 92.75 1.3M, ResNet-32 91.6 .475M",
            setting="slim",
            how="none",
        ),
        Claim(
            "S5",
            "ImageNet top-1",
            "60.97 (2016); 71.5-74.2 (2022 weights, m1/m2, 5m/9m)",
            baseline="VGG16 71.6, ResNet18 69.7",
            setting="224",
            how="none",
        ),
        Claim(
            "S6",
            "2-25x fewer params and ops",
            "5.4M, 652M ops",
            baseline="AlexNet 60M 7.27G, VGG16 138M 154.7G, GoogleNet 7M 16.04G, ResNet152 60M 11.3G",
            setting="op table",
            how="model",
        ),
        Claim(
            "S7",
            "throughput img/s GTX1080 batch 256 fp32",
            "5m_m1 2168, 5m_m2 1810, 9m_m1 1082",
            baseline="resnet18 1816, resnet34 1065, vgg16 312, mobilenetv2 1158",
            setting="published CSV",
            how="model",
        ),
    ),
)
