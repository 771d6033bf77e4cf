"""AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="accllm",
    title="AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design",
    arxiv="2505.03745",
    year=2025,
    field="hardware",
    summary="Shrinks long-context decoding for edge FPGAs with pruned 2-bit weights, 4-bit caches and a Λ-shaped window, and builds one engine for both phases.",
    claims=(
        Claim(
            "X1",
            "decode throughput",
            "164 tok/s",
            baseline="FlightLLM U280 55 (2.98x)",
            setting="Llama-2-7B, U280, cycle-accurate simulator checked against RTL, not a board run",
            how="model",
        ),
        Claim(
            "X2",
            "energy",
            "4.96 tok/J at 33 W",
            baseline="FlightLLM 1.22 tok/J at 45 W (4.07x)",
            setting="same",
            how="model",
        ),
        Claim(
            "X3",
            "others in that table",
            "A100 45, EdgeLLM (VCU128, ChatGLM2-6B) 75, FlightLLM VHK158 92.5 tok/s",
            how="none",
        ),
        Claim(
            "X4",
            "long sequences",
            "stable perplexity beyond the trained length, constant memory",
            baseline="full / window attention",
        ),
        Claim("X5", "accuracy of the stack", "small loss at 7B", baseline="fp16"),
    ),
)
