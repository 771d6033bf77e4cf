"""LITA: Language Instructed Temporal-Localization Assistant."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="lita",
    title="LITA: Language Instructed Temporal-Localization Assistant",
    arxiv="2403.19046",
    year=2024,
    field="multimodal",
    summary="Teaches a video model to answer when something happens with relative time tokens and two token rates.",
    claims=(
        Claim(
            "L1",
            "mIoU / P@0.5 / score",
            "LITA-13B 28.6 / 25.9 / 46.3",
            baseline="slow only 14.6 / 11.8 / 32.2; slow-fast without time tokens 17.5 / 14.5 / 34.1",
            setting="ActivityNet-RTL, same tasks",
        ),
        Claim("L2", "model size", "13B 28.6", baseline="7B 24.1 mIoU, 21.2 P@0.5", how="none"),
        Claim("L3", "tasks", "all 28.6", baseline="RTL only 26.6, no image QA 26.9", setting="ablation"),
        Claim(
            "L4",
            "text generation benchmark average",
            "3.04",
            baseline="Video-ChatGPT 2.38; temporal 2.68 vs 1.98 (+36 %)",
            how="none",
        ),
        Claim("L5", "visual tokens", "356", baseline="25,600", setting="T=100, M=256", how="model"),
        Claim("L6", "training cost", "13 h on 8 A100 (13B), 9 h (7B)", setting="4k iterations", how="model"),
        Claim("L7", '"nearly double" mIoU of baselines', "28.6 vs 14.6", baseline="slow only"),
    ),
)
