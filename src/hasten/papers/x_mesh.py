"""X-Mesh: Towards Fast and Accurate Text-driven 3D Stylization via Dynamic Textual Guidance."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="x-mesh",
    title="X-Mesh: Towards Fast and Accurate Text-driven 3D Stylization via Dynamic Textual Guidance",
    arxiv="2303.15764",
    year=2023,
    field="generation",
    summary="Styles a bare mesh by text, with attention layers generated from the prompt.",
    claims=(
        Claim(
            "C1",
            "ITS (lower better)",
            "clearly fewer iterations than Text2Mesh; figures not",
            baseline="Text2Mesh",
            setting="MIT-30, 0.22",
        ),
        Claim(
            "C2", "MES (higher better)", "higher than Text2Mesh; figures not", baseline="Text2Mesh", setting="MIT-30"
        ),
        Claim(
            "C3",
            "ablation",
            "both gates help, dynamic > static",
            baseline="TDAM minus one gate / static linear",
            setting="MIT-30",
        ),
        Claim("C4", "cost per step", "TDAM cost is negligible beside CLIP", setting="224^2, ViT-B/32", how="model"),
    ),
)
