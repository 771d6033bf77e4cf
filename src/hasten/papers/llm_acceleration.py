"""New Solutions on LLM Acceleration, Optimization, and Application."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="llm-acceleration",
    title="New Solutions on LLM Acceleration, Optimization, and Application",
    arxiv="2406.10903",
    year=2024,
    field="inference",
    summary="Surveys its authors' work from parallel decoding and cache compression to language models that debug circuits.",
    claims=(
        Claim(
            "L1",
            "Medusa speed",
            "2.2x (Medusa-1), 2.3-3.6x (Medusa-2)",
            baseline="autoregressive",
            setting="7B-33B GPU",
        ),
        Claim(
            "L2",
            "SnapKV",
            "3.6x decode speed, 8.2x memory at 16K; 380K context on one A100-80GB",
            baseline="full KV",
            setting="LWM-7B",
        ),
        Claim(
            "L3",
            "AutoDistill",
            "up to +3.2% pretraining accuracy, 1.44x latency; 28.5M params GLUE 81.69; 20.6M smallest",
            baseline="MobileBERT 25.3M",
            setting="TPUv4i",
        ),
        Claim("L4", "HIDA", "up to 8.54x / 1.29x", baseline="HLS SOTA / RTL", setting="FPGA", how="model"),
        Claim("L5", "Chrysalis", "> 1,000 designs, 19 bug types seen"),
    ),
)
