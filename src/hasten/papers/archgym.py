"""ArchGym: An Open-Source Gymnasium for Machine Learning Assisted Architecture Design."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="archgym",
    title="ArchGym: An Open-Source Gymnasium for Machine Learning Assisted Architecture Design",
    arxiv="2306.08888",
    year=2023,
    field="hardware",
    summary="Puts any search algorithm in front of any architecture simulator through one interface, so that they are compared fairly and learn from shared logs.",
    claims=(
        Claim(
            "c1",
            "with enough samples and tuned hyper-parameters all agents reach the target",
            "no best algorithm",
            setting="21 600 experiments",
        ),
        Claim("c2", "hyper-parameter lottery: spread of best reward over hyper-parameters", "IQR up to about 90 %"),
        Claim("c3", "sample efficiency differs at small budgets", "ranking changes with budget"),
        Claim("c4", "proxy RMSE", "0.61 %", baseline="simulator", setting="DRAM"),
        Claim("c5", "proxy speed", "2000x", baseline="DRAMSys"),
        Claim("c6", "diverse training data", "up to 42x lower RMSE", baseline="ACO-only log", setting="equal size"),
    ),
)
