"""InTAR: Inter-Task Auto-Reconfigurable Accelerator Design for High Data Volume Variation in DNNs."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="intar",
    title="InTAR: Inter-Task Auto-Reconfigurable Accelerator Design for High Data Volume Variation in DNNs",
    arxiv="2502.08807",
    year=2025,
    field="hardware",
    summary="Switches an FPGA design between sequential and dataflow execution as the size of its data varies.",
    claims=(
        Claim(
            "I1",
            "speedup, mean over kernels",
            "1.8x",
            baseline="dataflow accelerators",
            setting="5 kernels",
            how="model",
        ),
        Claim("I2", "speedup, mean", "7.1x", baseline="sequential accelerators", setting="5 kernels", how="model"),
        Claim("I3", "GPT-2 medium speedup", "3.65-39.14x", baseline="Allo, DFX", setting="U280, VPK180", how="none"),
        Claim("I4", "DSP efficiency", "1.72-10.44x", baseline="Allo, DFX", how="none"),
        Claim("I5", "power efficiency", "1.66-7.17x", baseline="GPUs", how="none"),
        Claim(
            "I6", "reconfiguration 10-20 ns", "negligible", baseline="coarse-grain reconfigurable designs", how="model"
        ),
        Claim(
            "I7",
            "less off-chip traffic than sequential, fewer stall cycles than dataflow",
            "any S",
            setting="any S",
            how="model",
        ),
    ),
)
