"""Modeling Performance of Data Collection Systems for High-Energy Physics."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="daq",
    title="Modeling Performance of Data Collection Systems for High-Energy Physics",
    arxiv="2407.00123",
    year=2024,
    field="hardware",
    summary="Models a physics experiment's data collection as a graph of links and triggers to predict throughput, power and yield.",
    claims=(
        Claim(
            "D1",
            "power cut by early-stage + GPU options",
            "60 % (51.6 -> 20.5 MW)",
            baseline="Run-5 plain",
            setting="GPU+smart pixels(+L1T)",
            how="model",
        ),
        Claim(
            "D2",
            "productivity",
            "0.065 -> 0.31 samples/kJ (repo reruns .055-.059 -> .257-.296: Monte-Carlo and version noise)",
            baseline="Run-5 plain",
            setting="all three options",
            how="model",
        ),
        Claim("D3", "Run-3 -> Run-5", "0.32 MW -> 51.6 MW (RR 53.3); RR 400 at pile-up 200: 6.98 MW", how="model"),
        Claim("D4", "F1", ".386 plain; .79-.89 with L1T tracking", how="model"),
        Claim(
            "D5", "single options, MW", "GPU 25.9, L1T 51.65, smart px 40.8, GPU+px 20.47", baseline="51.6", how="model"
        ),
        Claim(
            "D6",
            "early improvements dominate",
            "gradients of productivity w.r.t. upstream parameters larger",
            baseline="downstream",
            how="model",
        ),
    ),
)
