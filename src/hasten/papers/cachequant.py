"""CacheQuant: Comprehensively Accelerated Diffusion Models."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="cachequant",
    title="CacheQuant: Comprehensively Accelerated Diffusion Models",
    arxiv="2503.01323",
    year=2025,
    field="inference",
    summary="Combines feature caching and quantization of diffusion models without training, choosing where to refresh by dynamic programming.",
    claims=(
        Claim(
            "C1",
            "speed-up, compression, FID",
            "5.18x, 4x, 23.74",
            baseline="DeepCache N=10: 3.52x, 1x, 23.45",
            setting="SD v1.4 MS-COCO, N=5 W8A8",
            how="model",
        ),
        Claim(
            "C2",
            "same, LDM-4 ImageNet",
            "7.87x, 4x, FID 4.03, 1.50 T Bops",
            baseline="DeepCache N=5 4.12x 3.79 24.06 T; EDA-DM W8A8 1.91x 4.13 6.39 T",
            setting="N=5 W8A8",
            how="model",
        ),
        Claim(
            "C3",
            "DiT-XL/2",
            "2.72x, FID 7.86, 5.49 T",
            baseline="Delta-DiT N=2: 1.31x, 9.06, 87.88 T",
            setting="N=2 W8A8",
            how="model",
        ),
        Claim(
            "C4",
            "ablation LDM-4 N=20: FID / IS",
            "cache only 8.08/159.27; +W8A8 15.36/121.78; +DPS 8.47/154.07; +DEC 7.21/160.68; +Recon 6.34/180.42",
            baseline="each row the one before",
            setting="run ordering",
            how="none",
        ),
        Claim(
            "C5",
            "separate losses do not add up",
            "+0.76 (quant) and +4.71 (cache) but +11.99 together",
            baseline="FP model",
            setting="LDM ImageNet",
        ),
        Claim("C6", "small N can beat FP", "LSUN-church 3.52 vs 3.99", baseline="FP", setting="N=2,3"),
        Claim("C7", "DPS search time", "8 min", baseline="4 h unrestricted", setting="T=250"),
    ),
)
