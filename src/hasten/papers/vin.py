"""Generating, Fast and Slow: Scalable Parallel Video Generation with Video Interface Networks."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="vin",
    title="Generating, Fast and Slow: Scalable Parallel Video Generation with Video Interface Networks",
    arxiv="2503.17539",
    year=2025,
    field="generation",
    summary="Summarizes a whole noisy video in a few tokens so that its chunks are denoised in parallel.",
    claims=(
        Claim(
            "V1",
            "FLOPs per denoise step",
            "25-40 % fewer",
            baseline="full attention",
            setting="long clips (up to 256-512 frames)",
            how="model",
        ),
        Claim("V2", "wall-clock", "40-75 % faster", baseline="full attention", setting="same"),
        Claim(
            "V3",
            "MAWE (motion-aware warp error, lower better)",
            "1.09",
            baseline="1.69 without global tokens",
            setting="ablation table",
        ),
        Claim(
            "V4", "scene cuts", "0.21", baseline="0.33 without global tokens; 1.00 without fusion", setting="ablation"
        ),
        Claim(
            "V5",
            "fusion timing MAWE/cuts",
            "early 1.09/0.21",
            baseline="mid 1.11/0.33, late 1.22/0.74, none 1.13/1.00",
            setting="ablation",
        ),
        Claim("V6", "overlap at sampling MAWE", "12 frames: 1.09", baseline="8: 1.51, 10: 1.17", setting="ablation"),
        Claim(
            "V7",
            "key-frame spacing MAWE",
            "1.0 s: 1.09",
            baseline="0.5 s: 1.14, 0.2 s: 1.21",
            setting="denser is not better",
        ),
        Claim(
            "V8",
            "VBench subject/background consistency",
            "best of 6 methods",
            baseline="AR, StreamingT2V, FreeNoise, spectral blending, full",
            setting="64-512 frames",
            how="none",
        ),
        Claim("V9", "user study", "loses < 30 %", baseline="each baseline", setting="human raters", how="none"),
    ),
)
