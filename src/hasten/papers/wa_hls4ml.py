"""wa-hls4ml: A Benchmark and Surrogate Models for hls4ml Resource and Latency Estimation."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="wa-hls4ml",
    title="wa-hls4ml: A Benchmark and Surrogate Models for hls4ml Resource and Latency Estimation",
    arxiv="2511.05615",
    year=2025,
    field="cost models",
    summary="A large data set and learned models for the FPGA resources and latency of small networks.",
    claims=(
        Claim(
            "W1",
            "75th percentile relative error, all targets",
            '"within several percent" on the synthetic test split',
            baseline="synthesised truth",
            setting="GNN and transformer",
        ),
        Claim("W2", "data set size", "> 680,000 synthesised nets", baseline="rule4ml (about 15k, memory)", how="none"),
        Claim("W3", "exemplar (real) models", "larger errors than synthetic: generalisation gap", setting="7 models"),
        Claim("W4", "seconds instead of synthesis hours", "prediction < 1 s", baseline="Vivado"),
        Claim(
            "W5",
            "latency and DSP structure",
            "exact rule above",
            baseline="surrogates",
            setting="dense Resource",
            how="model",
        ),
    ),
)
