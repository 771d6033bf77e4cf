"""SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="sn40l",
    title="SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts",
    arxiv="2405.07518",
    year=2024,
    field="hardware",
    summary="A dataflow chip with three memory tiers that serves a composition of many expert models.",
    claims=(
        Claim(
            "S1",
            "fused speedup",
            "2x-13x",
            baseline="unfused on same chip",
            setting="8 sockets, ~10 workloads",
            how="model",
        ),
        Claim(
            "S2",
            "operational intensity",
            "39.5 / 102.6 / 410.4",
            baseline="fusion levels",
            setting="Monarch chain",
            how="model",
        ),
        Claim(
            "S3",
            "switching time",
            "31x / 15x shorter",
            baseline="DGX A100 / H100 over PCIe 32 / 64 GB/s",
            setting="7B expert",
            how="model",
        ),
        Claim(
            "S4",
            "footprint",
            "19x fewer machines",
            baseline="DGX (640 GB HBM, about 45 experts each)",
            setting="850 experts",
            how="model",
        ),
        Claim(
            "S5",
            "end-to-end",
            "6.6x vs A100, 3.7x vs H100",
            baseline="same",
            setting="150 experts, short answers",
            how="model",
        ),
        Claim("S6", "capacity", "trillion params in one node", setting="12 TiB DDR", how="model"),
        Claim("S7", "decode at > 85% of HBM bandwidth", "GPU far lower", baseline="GPU far lower", how="none"),
        Claim("S8", "quality of CoE", "on par with large monolithic models", how="none"),
    ),
)
