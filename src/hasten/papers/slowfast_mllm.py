"""Slow-Fast Architecture for Video Multi-Modal Large Language Models."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="slowfast-mllm",
    title="Slow-Fast Architecture for Video Multi-Modal Large Language Models",
    arxiv="2504.01328",
    year=2025,
    field="multimodal",
    summary="Gives a video model few pooled tokens in the prompt and all others through cross-attention.",
    claims=(
        Claim(
            "F1",
            "prefill compute, 16 -> 128 frames",
            "+3 %",
            baseline="self-attention-only LLM with 16 frames",
            setting="Qwen2-7B",
            how="model",
        ),
        Claim("F2", "average over 5 video benchmarks", "+16 % relative", baseline="same baseline", how="none"),
        Claim(
            "F3",
            "64 frames: VideoMME 60.2, +sub 63.0, MLVU 67.3, MVBench 68.9, EgoSchema 59.2, LongVideoBench 56.6, PerceptionTest 70.3, NextQA 83.5, ActivityNetQA 54.8, TempCompass 68.9",
            "LLaVA-OV-7B 58.2 / 61.5 / 64.7 / 56.7 / 60.1 / 56.5 / 57.1 / 79.4 / 56.6 / 64.8",
            baseline="7B",
            setting="no",
            how="none",
        ),
        Claim(
            "F4",
            "96 frames: 60.3, 63.4, 68.1, 68.6, 59.8, 58.0, 70.2, 83.1, 54.5, 67.7",
            "64-frame model",
            baseline="7B",
            setting="no",
            how="none",
        ),
        Claim("F5", "complexity in video length", "linear", baseline="quadratic self-attention"),
        Claim(
            "F6",
            "1536 frames at inference without extra compression",
            "98k slow tokens, 64/frame",
            baseline="SigLIP encoder",
            how="model",
        ),
        Claim("F7", "plug-and-play", "works with LLaVA-like models"),
    ),
)
