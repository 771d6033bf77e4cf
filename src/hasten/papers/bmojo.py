"""B'MOJO: Hybrid State Space Realizations of Foundation Models with Eidetic and Fading Memory."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="bmojo",
    title="B'MOJO: Hybrid State Space Realizations of Foundation Models with Eidetic and Fading Memory",
    arxiv="2407.06324",
    year=2024,
    field="language",
    summary="Joins a window, a compressed state and exactly kept surprising tokens in one attention layer.",
    pieces=("hasten.nn:BMOJO",),
    claims=(
        Claim(
            "J1",
            "associative recall (MQAR) accuracy",
            "above SSMs and hybrids at equal size",
            baseline="Mamba, Mamba + SWA, B'MOJO-F",
            setting="small models",
        ),
        Claim("J2", "perplexity", "comparable to Transformer and Mamba", baseline="same size", setting="up to 1.4B"),
        Claim(
            "J3",
            "training time",
            "up to 10% faster",
            baseline="Mamba / Transformer of the size",
            setting="GPU",
            how="model",
        ),
        Claim(
            "J4",
            "length generalisation",
            "perplexity keeps falling to 32k",
            baseline="trained <= 8k (4x)",
            setting="1.4B",
        ),
        Claim("J5", "special cases", "exact"),
        Claim(
            "J6",
            "later released 8B (half of the layers B'MOJO-F, primed from Qwen3-8B)",
            "short tasks 71.27 vs 71.21; decode throughput 0.88x/1.08x/1.30x/1.75x growing with context up to 128k",
            baseline="Qwen3-8B",
            setting="8 GPUs",
            how="model",
        ),
    ),
)
