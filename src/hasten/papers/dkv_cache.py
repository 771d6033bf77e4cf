"""dKV-Cache: The Cache for Diffusion Language Models."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="dkv-cache",
    title="dKV-Cache: The Cache for Diffusion Language Models",
    arxiv="2505.15781",
    year=2025,
    field="inference",
    summary="A delayed cache of keys and values for diffusion language models, whose attention looks both ways.",
    claims=(
        Claim(
            "K1",
            "GSM8K acc, tok/s (LLaDA)",
            "Decode 78.85, 27.50 (1.92x)",
            baseline="base 77.56, 14.31; half-steps 77.91, 28.71",
            setting="R=8, A6000",
            how="model",
        ),
        Claim(
            "K2",
            "MMLU / HumanEval (LLaDA)",
            "51.00, 2.35x / 46.34, 1.83x",
            baseline="51.11 / 39.63; half-steps 51.11 / 33.54",
            setting="R=8",
            how="model",
        ),
        Claim(
            "K3",
            "Greedy w=4 GSM8K",
            "68.23, 1.63x",
            baseline="random base 72.25; few-steps 65.58, 1.59x; greedy w=0 67.93",
            setting="R=2",
        ),
        Claim(
            "K4",
            "Dream GSM8K 8-shot",
            "Decode 76.57 2.09x; Prefill 75.66 3.55x; PD 74.07 3.32x",
            baseline="76.88; half 68.08 2.00x",
            setting="R=4, L=256",
            how="model",
        ),
        Claim(
            "K5",
            "long prompt (GPQA 5-shot, Dream)",
            "Prefill 35.27, 10.19x (18.91x at T=64)",
            baseline="36.83",
            setting="no refresh",
            how="model",
        ),
        Claim(
            "K6",
            "delay",
            "one-step delay keeps accuracy at high cache ratio; none collapses to about 0",
            baseline="Fig. 3",
            setting="LLaDA",
        ),
        Claim(
            "K7",
            "K,V drift",
            "largest change at the step a token is decoded; small afterwards",
            baseline="Fig. 2",
            setting="LLaDA",
        ),
        Claim(
            "K8",
            "alignment for shifted models",
            "un-shift 76.34, right 32.68, un&right 77.71 (GSM8K)",
            baseline="Dream",
            setting="run toy shifted model",
            how="none",
        ),
        Claim(
            "K9",
            "batch size 1 may be slower than no cache",
            "stated",
            baseline="H20",
            setting="run (report CPU)",
            how="none",
        ),
    ),
)
