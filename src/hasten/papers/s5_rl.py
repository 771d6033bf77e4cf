"""Structured State Space Models for In-Context Reinforcement Learning."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="s5-rl",
    title="Structured State Space Models for In-Context Reinforcement Learning",
    arxiv="2303.03982",
    year=2023,
    field="reinforcement learning",
    summary="Resets a state-space layer inside its parallel scan at episode ends, for fast recurrent policies.",
    pieces=("hasten.nn:S5",),
    claims=(
        Claim("S1", "training wall time", "over 5x faster", baseline="GRU/LSTM", setting="POPGym, bsuite, accelerator"),
        Claim(
            "S2",
            "asymptotics",
            "time O(L), O(1) per acting step",
            baseline="Transformer O(L^2), O(L) per step",
            setting="memory-length task",
        ),
        Claim(
            "S3",
            "memory-length return",
            "solves lengths where the LSTM fails",
            baseline="LSTM, Transformer",
            setting="bsuite memory_len",
        ),
        Claim(
            "S4",
            "POPGym returns",
            "better than GRU on most, solves Repeat Previous Hard (k = 64)",
            baseline="GRU",
            setting="15M steps, 8 seeds",
        ),
        Claim(
            "S5", "reset matters", "unresettable S5 fails across episode borders", baseline="no reset", setting="same"
        ),
        Claim(
            "S6",
            "in-context adaptation",
            "return rises over the trials of one episode; also on held-out tasks",
            baseline="memoryless",
            setting="random projections",
        ),
    ),
)
