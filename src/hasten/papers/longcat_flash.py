"""LongCat-Flash Technical Report."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="longcat-flash",
    title="LongCat-Flash Technical Report",
    arxiv="2509.01322",
    year=2025,
    field="language",
    summary="A 560-billion-parameter model whose experts include doing nothing, so that tokens cost what they need.",
    claims=(
        Claim(
            "L1",
            "total / min / mean / max active params",
            "560B / 18.6 / 27 / 31.3B",
            setting="config above",
            how="model",
        ),
        Claim(
            "L2",
            "mean FFN experts per token",
            "steered to K_e, ~1% deviation",
            baseline="no controller drifts",
            setting="20T tokens",
        ),
        Claim(
            "L3",
            "zero experts beat same-compute MoE",
            "lower validation loss",
            baseline="N experts, K = K_e, no zero experts",
            setting="matched active params",
        ),
        Claim(
            "L4",
            "ScMoE is quality-neutral",
            "loss curves on top of each other",
            baseline="MoE after second attention",
            setting="2.4B-16B up to 15B-193B",
        ),
        Claim("L5", "scale correction + gamma", "better convergence", baseline="without", setting="small MoE"),
        Claim(
            "L6",
            "stacking init",
            "lower loss than random init after a short spike",
            baseline="random init",
            setting="14 -> 28 layers",
        ),
        Claim(
            "L7",
            "cost",
            "$0.70 per M output tokens, >100 tokens/s/user",
            setting="804 tokens/s/GPU at 100.5 TPS on 128 H800, $2 per GPU-h",
            how="model",
        ),
        Claim(
            "L8",
            "overlap",
            "~50% lower theoretical TPOT (16 vs 30 ms, memory)",
            baseline="DeepSeek-V3 with TBO",
            setting="H800, EP128",
            how="model",
        ),
        Claim(
            "L9",
            "20T tokens in 30 days, 98.5% availability",
            "10k+ accelerators",
            setting="10k+ accelerators",
            how="none",
        ),
        Claim("L10", "bitwise reproducible training", "identical losses"),
    ),
)
