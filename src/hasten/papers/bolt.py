"""BOLT: Bandwidth-Optimized Lightning-Fast Oblivious Map powered by Secure HBM Accelerators."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="bolt",
    title="BOLT: Bandwidth-Optimized Lightning-Fast Oblivious Map powered by Secure HBM Accelerators",
    arxiv="2509.01742",
    year=2025,
    field="hardware",
    summary="An oblivious key-value map that hides its access pattern behind an accelerator's fast memory.",
    claims=(
        Claim(
            "B1",
            "query speedup up to 480x",
            "4.57 us vs EnigMap 2282 us at 262k (=499x)",
            baseline="EnigMap, H2O2RAM, Facebook ORAM (CPU enclaves)",
            setting="8 B",
            how="none",
        ),
        Claim(
            "B2",
            "init speedup up to 279x",
            "1.6 s at 1M",
            baseline="H2O2RAM 291 s at 1M, 3975 s at 8M; Facebook 42 s at 1M, 487 s at 8M",
            how="none",
        ),
        Claim(
            "B3",
            "bandwidth O(1)+O(loglog N)",
            "2(1-alpha) pages of l_max",
            baseline="Path ORAM: 2*Z*(log2 N) blocks (times recursion)",
            setting="any N",
        ),
        Claim("B4", "bin bound", "observed 12 <= 13.32 (c=8), 20 <= 21.32 (c=16) after 1e9 accesses", setting="N=2^20"),
        Claim(
            "B5",
            "buffer bound",
            "alpha=.2: 53,422 <= 78,977; .5: 33,631 <= 61,850; (c=16, .01): 33,152 <= 52,986",
            setting="N=2^20",
        ),
        Claim("B6", "HBM items", ".2: 210,521 <= 217,743; .5: 525,356 <= 536,986; .01 (c=16): 10,635 <= 12,512"),
        Claim("B7", "latency falls with alpha", "4.96/4.57/3.73/2.63 us", setting="1M", how="model"),
    ),
)
