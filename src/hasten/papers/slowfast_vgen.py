"""SlowFast-VGen: Slow-Fast Learning for Action-Driven Long Video Generation."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="slowfast-vgen",
    title="SlowFast-VGen: Slow-Fast Learning for Action-Driven Long Video Generation",
    arxiv="2410.23277",
    year=2024,
    field="generation",
    summary="Remembers a long generated video in a small adapter that it trains while generating.",
    claims=(
        Claim(
            "S1",
            "FVD",
            "514",
            baseline="AnimateDiff 782, SEINE 919, StreamingT2V 990, iVideoGPT 1303, AVDC 1408",
            setting="next-chunk generation",
            how="none",
        ),
        Claim(
            "S2",
            "scene cuts per long video",
            "0.37",
            baseline="1.88 without TEMP-LoRA; StreamingT2V 0.89",
            setting="long rollout",
        ),
        Claim("S3", "SRC", "93.71", baseline="89.04 without TEMP-LoRA", setting="revisit paths"),
        Claim(
            "S4",
            "SRC/cuts: original Temp-LoRA objective",
            "92.24 / 0.55",
            baseline="ours 93.71 / 0.37",
            setting="predict output given clean input and text",
        ),
        Claim(
            "S5",
            "SRC/cuts: whole-history sampling",
            "90.27 / 0.36",
            baseline="ours 93.71 / 0.37",
            setting="no local rule, over-smooths",
        ),
        Claim("S6", "SRC/cuts: single-frame condition", "90.01 / 1.24", baseline="ours", setting="no chunk input"),
        Claim(
            "S7", "seconds per sample / MB", "13.81 / 9931", baseline="12.93 / 9579 without TEMP-LoRA", setting="V100"
        ),
        Claim(
            "S8",
            "distance to way-points, RLBench / Minecraft",
            "0.013 / 1.51",
            baseline="without loop 0.055 / 2.23; without TEMP-LoRA 0.080 / 6.31",
            setting="planning",
        ),
    ),
)
