"""FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="fusemax",
    title="FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design",
    arxiv="2406.10491",
    year=2024,
    field="hardware",
    summary="Writes attention as cascades of Einsums, counts their passes mechanically, and maps the one-pass form on a spatial array.",
    pieces=(
        "hasten.workload.attention:attention",
        "hasten.workload.attention:execute",
        "hasten.workload.passes:passes",
        "hasten.cost.spatial",
    ),
    claims=(
        Claim(
            "F1",
            "attention speedup, arithmetic mean over 24 points",
            "6.7x (6.72)",
            baseline="FLAT",
            setting="table above",
            how="model",
        ),
        Claim("F2", "attention energy ratio, mean", "79 % (0.787)", baseline="FLAT", setting="same", how="model"),
        Claim(
            "F3", "end-to-end speedup, mean", "5.3x (5.30)", baseline="FLAT", setting="incl. linear layers", how="model"
        ),
        Claim("F4", "end-to-end energy", "83 % (0.833)", baseline="FLAT", setting="same", how="model"),
        Claim("F5", "attention speedup", "10.05x mean", baseline="unfused", setting="same", how="model"),
        Claim("F6", "2D-array utilisation", "0.89 (1K) -> 0.993 (1M), BERT", baseline="FLAT 0.125", how="model"),
        Claim(
            "F7",
            "ablation order",
            "flat/cascade/arch/binding: binding is 7.34x over +cascade, 3.03x over +arch (means)",
            how="model",
        ),
        Claim("F8", "pass counts", "stable 3 (2 with deferred division), local-max 2, online 1", setting="any"),
        Claim("F9", "buffer need independent of M", "16 MiB at 1K..1M", baseline="3-pass grows with M", how="model"),
    ),
)
