"""DistZO2: High-Throughput and Memory-Efficient Zeroth-Order Fine-tuning LLMs with Distributed ..."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="distzo2",
    title="DistZO2: High-Throughput and Memory-Efficient Zeroth-Order Fine-tuning LLMs with Distributed Parallel Computing",
    arxiv="2507.03211",
    year=2025,
    field="training",
    summary="Fine-tunes with forward passes alone while weights stream through a small fast memory on several devices.",
    claims=(
        Claim("Z1", "throughput", "3x", baseline="ZO2 on one device", setting="OPT-175B, multi-GPU", how="model"),
        Claim("Z2", "no accuracy change", "same trajectory as MeZO", baseline="MeZO", setting="any"),
        Claim(
            "Z3",
            "memory per device as ZO2",
            "18 GB for 175B",
            baseline="> 350 GB resident",
            setting="fp16 storage",
            how="model",
        ),
        Claim(
            "Z4",
            "communication per step independent of model size",
            "1-2 scalars",
            baseline="first-order DDP: 2 bytes x params",
        ),
        Claim(
            "Z5",
            "sliced upload raises effective slow-link bandwidth n-fold",
            "~n x",
            baseline="every rank uploads all",
            setting="NVLink box",
            how="model",
        ),
        Claim("Z6", "PertP ~2x when compute-bound", "<= 2x", baseline="dual forward on one device", setting="2 GPUs"),
    ),
)
