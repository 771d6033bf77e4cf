"""Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="synthetic-memory",
    title="Fast & Slow Learning: Incorporating Synthetic Gradients in Neural Memory Controllers",
    arxiv="2011.05438",
    year=2020,
    field="training",
    summary="A memory network that learns within an episode from predicted gradients.",
    claims=(
        Claim(
            "M1",
            "classification benchmarks (few-shot)",
            "better than previous memory/meta learners (numbers not recovered)",
            baseline="NMN trained by BPTT only, MANN/MNM-like",
            setting="episodes",
        ),
        Claim("M2", "regression", "better, same comparison", baseline="NMN", setting="function families"),
        Claim("M3", "rare samples", "adapts where plain NMN ignores them", baseline="NMN", setting="imbalanced stream"),
        Claim(
            "M4",
            "faster keep/erase strategy after a task switch",
            "qualitative",
            baseline="NMN",
            setting="memory traces",
        ),
        Claim(
            "M5",
            "shared feedback path transfers",
            "second network learns sooner",
            baseline="own phi from scratch",
            setting="two NMNs",
        ),
        Claim(
            "M6",
            "decoupling cuts the backward cost",
            "memory does not grow with episode length in dni mode",
            baseline="BPTT",
        ),
    ),
)
