"""SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="smallthinker",
    title="SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment",
    arxiv="2507.20984",
    year=2025,
    field="inference",
    summary="Mixture-of-experts models for small machines whose router runs early enough to prefetch experts from storage.",
    claims=(
        Claim(
            "S1",
            "21B decode tok/s (i9-14900, 1+13 phone, RK3588, RPi5)",
            "30.19 / 23.03 / 10.84 / 6.61 in 11.47 GiB",
            baseline="Qwen3-30B-A3B 33.52 / 20.18 / 9.07 / - in 16.2 GiB",
            setting="Q4_0",
            how="model",
        ),
        Claim(
            "S2",
            "21B limited to 8 GB",
            "20.30 / 15.50 / 8.56",
            baseline="Qwen3-30B-A3B 10.11 / 0.18 / 6.32 (columns of the public table are shifted by one in places)",
            setting="Q4_0",
            how="model",
        ),
        Claim(
            "S3",
            "4B full memory",
            "108.17 / 78.99 / 39.76, 2.24 GiB",
            baseline="Qwen3-0.6B 148.56 / 94.91 / 45.93; 1.7B 62.24 / 41.00 / 20.29",
            how="model",
        ),
        Claim(
            "S4", "4B in 1 GB", "29.99 / 20.91 / 15.04", baseline="Qwen3-1.7B in 1 GB 2.66 / 1.09 / 1.00", how="model"
        ),
        Claim(
            "S5",
            "quality 21B-Instruct: MMLU 84.43, GPQA 55.05, MATH-500 82.4, IFEval 85.77, LiveBench 60.3, HumanEval 89.63, mean 76.26",
            "Qwen3-30B-A3B mean 74.54",
            setting="no (weights)",
            how="none",
        ),
        Claim(
            "S6",
            "KV at 32k",
            "13 global + 39 windowed layers: 34.4% of all-global",
            baseline="3.25 GiB fp16 -> 1.12 GiB",
            setting="21B",
            how="model",
        ),
        Claim(
            "S7",
            "pre-attention routing costs no quality",
            "~equal loss",
            baseline="post-attention router",
            setting="equal tokens",
        ),
    ),
)
