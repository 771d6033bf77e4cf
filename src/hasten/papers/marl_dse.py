"""Multi-Agent Reinforcement Learning for Microprocessor Design Space Exploration."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="marl-dse",
    title="Multi-Agent Reinforcement Learning for Microprocessor Design Space Exploration",
    arxiv="2211.16385",
    year=2022,
    field="hardware",
    summary="Gives each design parameter of a memory controller an agent of its own.",
    claims=(
        Claim(
            "c1",
            "episode reward after training",
            "MARL consistently higher",
            baseline="single-agent PPO, SAC",
            setting="4 traces, 3 objectives (figures; no table remembered)",
        ),
        Claim(
            "c2",
            "reaches user target",
            "MARL yes on most traces",
            baseline="SA often stuck",
            setting="same number of simulator calls",
        ),
        Claim("c3", "works across objectives", "power, latency, both"),
        Claim("c4", "parameters are nearly independent", "premise"),
        Claim("c5", "scalable to full SoC", "argument only"),
    ),
)
