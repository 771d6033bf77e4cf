"""Fish-Speech: Leveraging Large Language Models for Advanced Multilingual Text-to-Speech Synthesis."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="fish-speech",
    title="Fish-Speech: Leveraging Large Language Models for Advanced Multilingual Text-to-Speech Synthesis",
    arxiv="2411.01156",
    year=2024,
    field="generation",
    summary="Speech from text without phonemes: a language model makes frames, a small one unrolls their codes.",
    claims=(
        Claim(
            "C1",
            "WER voice cloning",
            "6.89%",
            baseline="ground truth 9.22, CosyVoice 22.20, F5-TTS 13.98, reecho 11.92",
            setting="ASR on clones",
            how="none",
        ),
        Claim(
            "C2",
            "speaker similarity",
            "0.914 Resemblyzer",
            baseline="GT 0.921, CosyVoice 0.936",
            setting="same",
            how="none",
        ),
        Claim("C3", "codebook utilisation", "near 100%", baseline="plain VQ/RVQ collapse", setting="GFSQ 8x1000"),
        Claim(
            "C4",
            "Dual-AR stabilises multi-code generation",
            "better than parallel heads",
            baseline="NaiveTransformer",
            setting="same slow stack",
        ),
        Claim(
            "C5",
            "real-time factor",
            "~1:5 on RTX 4060 mobile, 1:15 on RTX 4090",
            setting="KV cache + compile",
            how="model",
        ),
        Claim("C6", "first-packet latency", "150 ms", setting="streaming", how="model"),
        Claim(
            "C7",
            "fast-stack overhead",
            "4 layers x 8 positions per frame",
            baseline="flattening 8 codes into the slow stream (8x slow steps)",
            setting="per frame",
            how="model",
        ),
    ),
)
