"""BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="blockffn",
    title="BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity",
    arxiv="2507.08771",
    year=2025,
    field="inference",
    summary="Routes to experts by ReLU and trains neighbouring tokens to share them, so that whole chunks skip work.",
    pieces=("hasten.nn:BlockFFN",),
    claims=(
        Claim(
            "F1",
            "sparsity",
            "TLS > 80%, CLS_8 > 70%",
            baseline="TopK, DeepSeekMoE, GRIN, ReMoE have far lower CLS",
            setting="0.1-1.2B",
        ),
        Claim(
            "F2",
            "quality",
            "lower perplexity, higher task average at equal TLS",
            baseline="same baselines",
            setting="0.1-1.2B",
        ),
        Claim("F3", "losses drive CLS", "CLS collapses without L_al, L_cs", baseline="ablation", setting="same"),
        Claim(
            "F4",
            "decode speed",
            "up to 3.67x over dense autoregressive",
            baseline="with EAGLE-2 + chunk kernel",
            setting="~3B on Jetson Orin NX",
            how="model",
        ),
        Claim("F5", "one-token kernel", "speed ~ 1/(1 - TLS) of the FFN part", baseline="dense FFN", setting="same"),
        Claim("F6", "offloading", "high expert reuse between neighbours", baseline="TopK MoE"),
        Claim("F7", "adaptive factor beats constants", "better loss at equal CLS", baseline="fixed lam"),
    ),
)
