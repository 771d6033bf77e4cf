"""The I/O Complexity of Attention, or How Optimal is Flash Attention?."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="attention-io",
    title="The I/O Complexity of Attention, or How Optimal is Flash Attention?",
    arxiv="2402.07443",
    year=2024,
    field="cost models",
    summary="Gives lower bounds on the memory traffic of exact attention for every cache size, and the algorithm that meets them in small caches.",
    pieces=("hasten.workload.attention_io",),
    claims=(
        Claim(
            "A1",
            "FlashAttention optimal up to a constant",
            "any M >= d^2",
            baseline="lower bound",
            setting="all N,d",
            how="model",
        ),
        Claim(
            "A2",
            "better algorithm for M < d^2",
            "N^2 d/sqrt(M) < N^2 d^2/M",
            baseline="FlashAttention",
            setting="M < d^2",
        ),
        Claim("A3", "exponents", "-1 in M above d^2, -1/2 below"),
        Claim("A4", "fast matmul does not help for M >= d^2", "bound unchanged", baseline="Strassen"),
        Claim("A5", "crossover at M = Theta(d^2)", "crossover at M = Theta(d^2)"),
    ),
)
