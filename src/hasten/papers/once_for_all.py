"""Once-for-All: Train One Network and Specialize it for Efficient Deployment."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="once-for-all",
    title="Once-for-All: Train One Network and Specialize it for Efficient Deployment",
    arxiv="1908.09791",
    year=2019,
    field="architecture search",
    summary="Trains one network whose parts all work by themselves, and picks one for each device.",
    pieces=("hasten.models:OnceForAll",),
    claims=(
        Claim(
            "c1",
            "sub-net D4W3K3 top-1 without fine-tune",
            "74.8 % at 226 M MACs",
            baseline="joint training without PS 71.5 %",
            setting="ImageNet",
            how="model",
        ),
        Claim("c2", "PS beats no-PS on all 8 corner sub-nets", "+2.5 to +3.7 pp", baseline="same epochs"),
        Claim("c3", "number of sub-nets", "> 1e19", how="model"),
        Claim(
            "c4",
            "ImageNet top-1 < 600 M MACs",
            "80.0 % at 595 M",
            baseline="MobileNetV3, EfficientNet-B2",
            setting="fine-tuned 75",
            how="none",
        ),
        Claim(
            "c5",
            "vs MobileNetV3",
            "up to +4.0 pp, or 1.5x faster at equal accuracy; 2.6x vs EfficientNet",
            setting="phones",
            how="none",
        ),
        Claim(
            "c6",
            "design cost for N devices",
            "1200 + 40 GPU h once",
            baseline="MnasNet 40 000 N, Proxyless 200 N + 300 N train",
            how="model",
        ),
        Claim("c7", "predictor error", "RMSE 0.21 %", setting="ImageNet"),
        Claim(
            "c8",
            "zero-shot search result close to independently trained nets",
            "same level",
            baseline="trained from scratch",
        ),
    ),
)
