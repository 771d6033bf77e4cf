"""Resistive memory-based zero-shot liquid state machine for multimodal event data learning."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="resistive-lsm",
    title="Resistive memory-based zero-shot liquid state machine for multimodal event data learning",
    arxiv="2307.00771",
    year=2023,
    field="hardware",
    summary="Uses the random conductance of resistive memory as fixed spiking reservoirs and trains small projections alone.",
    claims=(
        Claim(
            "R1",
            "N-MNIST accuracy",
            "89.11 software, 89.66 RRAM",
            baseline="SRNN-ANN 96.96, SRNN-SNN 93.93, RNN 96.23",
            setting="N=200",
        ),
        Claim("R2", "N-TIDIGITS accuracy", "70.79 / 70.11 RRAM", baseline="SRNN-ANN 82.62, SRNN-SNN 63.75, RNN 75.54"),
        Claim(
            "R3",
            "zero-shot audio->image top-1",
            "seen 67.42, unseen 87.5 (RRAM, pd 64); software 66.1/88; pd 128 67.4/88.5",
            baseline="SRNN-CLIP 82.28/74.0; LSM-Proto 50.25/81.69; SRNN-Proto 50.25/82.14",
            setting="digits 1-7 vs 8,9 (chance 14.3 / 50)",
        ),
        Claim(
            "R4",
            "training cost down 152.83x / 393.07x",
            "SRNN-CLIP / prototypical nets",
            baseline="SRNN-CLIP / prototypical nets",
            how="model",
        ),
        Claim(
            "R5",
            "energy efficiency 23.34x / 160x",
            "40 nm macro",
            baseline="digital hardware",
            setting="40 nm macro",
            how="none",
        ),
        Claim("R6", "analogue reservoir == software reservoir", "differences < 1.5 points"),
    ),
)
