"""Co-Exploration of Neural Architectures and Heterogeneous ASIC Accelerator Designs Targeting Multiple Tasks."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="nasaic",
    title="Co-Exploration of Neural Architectures and Heterogeneous ASIC Accelerator Designs Targeting Multiple Tasks",
    arxiv="2002.04116",
    year=2020,
    field="architecture search",
    summary="Searches several networks and one chip of several small accelerators together under hard limits.",
    claims=(
        Claim("c1", "specs met", "always", baseline="successive NAS then ASIC violates", setting="W1, W2"),
        Claim("c2", "latency/energy/area vs NAS-then-ASIC", "-17.77 %, 2.49x, 2.32x", setting="W1"),
        Claim("c3", "accuracy loss", "0.76 pp mean", baseline="NAS only", setting="W1"),
        Claim(
            "c4", "better accuracy than ASIC-then-HW-NAS, all specs met", "+0.87 pp C10 in W1; 3.65 pp on STL-10 in W2"
        ),
        Claim(
            "c5",
            "heterogeneous beats single and homogeneous chips",
            "higher accuracy under the same specs",
            setting="W3",
        ),
        Claim(
            "c6",
            "dla suits deep layers, shi suits early ones",
            "dla suits deep layers, shi suits early ones",
            how="model",
        ),
    ),
)
