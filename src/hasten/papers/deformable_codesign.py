"""Algorithm-hardware Co-design for Deformable Convolution."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="deformable-codesign",
    title="Algorithm-hardware Co-design for Deformable Convolution",
    arxiv="2002.08357",
    year=2020,
    field="hardware",
    summary="Restricts deformable convolution step by step until an FPGA runs it well, and builds a detector on the result.",
    claims=(
        Claim(
            "D1",
            "VOC AP/AP50/AP75 ladder",
            "original 45.1/67.8/47.7; bound 44.3/66.5/47.1; square 42.2/64.9/45.1",
            baseline="3x3 conv 37.9/61.0/39.9",
            setting="ShuffleNetV2 1.0x, 512",
        ),
        Claim(
            "D2",
            "depthwise ladder",
            "original-dw 43.9/66.5/46.5; square-dw 41.7/64.5/43.8",
            baseline="3x3-dw 37.0/60.8/38.3",
            setting="same",
        ),
        Claim("D3", "COCO square-dw AP/50/75", "21.6/37.4/21.8", setting="512", how="none"),
        Claim(
            "D4",
            "speedup of restrictions on FPGA",
            "1.36x full, 9.76x depthwise",
            baseline="unrestricted on same engine",
            setting="Ultra96",
            how="model",
        ),
        Claim(
            "D5",
            "detector",
            "61.7 AP50, 26.9 fps, 0.76 MB; 67.1 AP50, 2.9 MB",
            baseline="Tiny-YOLO (20.9x larger, 10% lower)",
            setting="VOC, W4A8",
            how="model",
        ),
    ),
)
