"""Mamba: Linear-Time Sequence Modeling with Selective State Spaces."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="mamba",
    title="Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    arxiv="2312.00752",
    year=2023,
    field="language",
    summary="A recurrent layer whose state update depends on the token, computed by a fused scan.",
    pieces=(
        "hasten.nn:Mamba",
        "hasten.models:MambaLM",
    ),
    claims=(
        Claim(
            "M1",
            "selective copying accuracy",
            "99.8 (Mamba+S6), 97.0 (S6 alone)",
            baseline="56.4 (Mamba+S4), 18.3 (S4 alone)",
            setting="length 4096, 16 of 16 tokens, 2 layers d 64, 400k steps",
        ),
        Claim(
            "M2",
            "induction heads, train 256",
            "100% up to 2^20",
            baseline="attention variants fail beyond 2x",
            setting="vocab 16, 2 layers, d 64",
        ),
        Claim(
            "M3",
            "selection ablation, Pile ppl at ~350M",
            "none 10.93, B 10.15, C 9.98, delta 9.81, all 8.71",
            setting="Pile",
        ),
        Claim(
            "M4",
            "state size N 1 -> 16",
            "9.73 -> 8.71 with selection; 9.88 -> 9.81 without",
            setting="~1% more parameters",
        ),
        Claim(
            "M5",
            "zero-shot average",
            "44.7/50.0/57.1/59.7/63.3 (130m..2.8b)",
            baseline="Pythia 160M 40.6, 2.8B 59.1, 6.9B 61.7",
            setting="300B tokens",
            how="none",
        ),
        Claim(
            "M6",
            "generation throughput",
            "4-5x",
            baseline="same-size Transformer, KV cache",
            setting="A100",
            how="model",
        ),
        Claim("M7", "scan speed", "20-40x plain PyTorch scan; beats FlashAttention-2 past 2k", setting="A100"),
        Claim("M8", "parameter counts", "table above", how="model"),
        Claim(
            "M9",
            "DNA to 1M tokens, audio FID 0.94/0.67 vs 1.99 SaShiMi",
            "HG38, SC09",
            setting="HG38, SC09",
            how="none",
        ),
    ),
)
