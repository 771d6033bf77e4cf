"""RLIPv2: Fast Scaling of Relational Language-Image Pre-training."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="rlipv2",
    title="RLIPv2: Fast Scaling of Relational Language-Image Pre-training",
    arxiv="2308.09351",
    year=2023,
    field="multimodal",
    summary="Pre-trains relation detection at scale with early language fusion and pseudo-labels.",
    claims=(
        Claim(
            "C1",
            "HICO-DET mAP zero-shot NF (rare/non-rare/full)",
            "R50 19.64/17.24/17.79; Swin-T 21.24/19.47/19.87; Swin-L 27.97/21.90/23.29",
            baseline="RLIPv1",
            setting="no fine-tuning",
            how="none",
        ),
        Claim(
            "C2",
            "1% / 10% data, full",
            "R50 23.96/28.46; Swin-T 27.85/31.87; Swin-L 32.22/37.46",
            setting="few-shot",
            how="none",
        ),
        Claim("C3", "100% data, full", "R50 35.38; Swin-T 38.60; Swin-L 45.09", setting="fine-tuned", how="none"),
        Claim("C4", "V-COCO AP1/AP2", "R50 65.9/68.0; Swin-L 72.1/74.1", how="none"),
        Claim(
            "C5",
            "convergence",
            "same or better score in a fraction of the epochs",
            baseline="late fusion (RLIPv1 style)",
        ),
        Claim("C6", "sparse language layers cost little, hurt little", "interval 2 default", baseline="interval 1"),
        Claim(
            "C7",
            "tagger labels beat caption-only / all-pairs labels",
            "tagger labels beat caption-only / all-pairs labels",
        ),
    ),
)
