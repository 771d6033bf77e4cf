"""MultiSoundGen: Video-to-Audio Generation for Multi-Event Scenarios via SlowFast Contrastive ..."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="multisoundgen",
    title="MultiSoundGen: Video-to-Audio Generation for Multi-Event Scenarios via SlowFast Contrastive Audio-Visual Pretraining and Direct Preference Optimization",
    arxiv="2509.19999",
    year=2025,
    field="generation",
    summary="Makes a sound track for silent video with several events, aligned by contrastive learning and preferences.",
    claims=(
        Claim(
            "C1",
            "all four axes",
            "state of the art on multi-event data; figures not",
            baseline="recent V2A models",
            setting="multi-event subset of VGGSound-like data",
            how="none",
        ),
        Claim(
            "C2",
            "SF-CAVP aligns better than single-stream AVP",
            "better",
            baseline="CAVP (single stream)",
            setting="retrieval, multi-event",
        ),
        Claim(
            "C3",
            "AVP-RPO improves semantics, sync and quality together",
            "gains on every axis",
            baseline="base model, plain DPO",
            setting="same generator",
        ),
        Claim(
            "C4",
            "fast stream is cheap",
            "fast ~ 20% of the SlowFast FLOPs (sibling)",
            baseline="two full-width streams",
            how="model",
        ),
    ),
)
