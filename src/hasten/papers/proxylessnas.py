"""ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="proxylessnas",
    title="ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware",
    arxiv="1812.00332",
    year=2018,
    field="architecture search",
    summary="Searches on the target task and device with one sampled path alive and latency in the loss.",
    claims=(
        Claim("c1", "search activation memory", "about one path's", baseline="DARTS-style mix of N ops", setting="any"),
        Claim(
            "c2",
            "ImageNet top-1, GPU net",
            "75.1 %, 5.1 ms",
            baseline="MobileNetV2 72.0 %, 6.1 ms",
            setting="V100 batch 8",
            how="model",
        ),
        Claim(
            "c3",
            "top-1, mobile net",
            "74.6 %, 78 ms",
            baseline="MBV2 72.0 %, 75 ms; MnasNet 74.0 %, 76 ms",
            setting="Pixel 1",
            how="model",
        ),
        Claim("c4", "search cost", "200 GPU h", baseline="MnasNet 40 000 GPU h", setting="ImageNet", how="model"),
        Claim(
            "c5",
            "CIFAR-10 error",
            "2.08 % at 5.7 M",
            baseline="AmoebaNet-B 2.13 % at 34.9 M",
            setting="cutout",
            how="none",
        ),
        Claim(
            "c6",
            "ms on GPU / CPU / phone: each net is fastest on its own device",
            "GPU net 5.1/204.9/124, CPU net 7.4/138.7/116, mobile net 7.2/164.1/78",
            baseline="the other two nets",
            setting="V100 b8, Xeon, Pixel 1",
            how="model",
        ),
        Claim(
            "c7",
            "additive LUT predicts whole-net latency",
            "RMSE about 0.75 ms",
            baseline="measured",
            setting="Pixel 1",
        ),
        Claim(
            "c8",
            "latency term in the loss",
            "74.2 %, 79 ms",
            baseline="without it 71.8 %, 83 ms",
            setting="Proxyless-G mobile",
        ),
    ),
)
