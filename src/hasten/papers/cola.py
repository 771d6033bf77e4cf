"""Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="cola",
    title="Skip a Layer or Loop it? Test-Time Depth Adaptation of Pretrained LLMs",
    arxiv="2507.07996",
    year=2025,
    field="inference",
    summary="Skips, repeats and reorders a pretrained model's layers for each input, found by tree search.",
    claims=(
        Claim(
            "C1",
            "originally correct samples with a shorter correct chain",
            "> 75%",
            baseline="full path",
            setting="ARC + DART, 200 sims",
        ),
        Claim("C2", "originally wrong samples fixed", "> 60%", baseline="full path", setting="same"),
        Claim(
            "C3", "skip+repeat beats either alone", "yes", baseline="skip-only, repeat-only", setting="same evaluations"
        ),
        Claim(
            "C4",
            "MCTS beats random search at equal evaluations",
            "implied",
            baseline="uniform random walk over actions",
            setting="same",
        ),
        Claim("C5", "layer compute saved on shorter chains", "(K/D)", baseline="D", setting="any", how="model"),
    ),
)
