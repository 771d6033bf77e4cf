"""Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="deepseek-v3",
    title="Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures",
    arxiv="2505.09343",
    year=2025,
    field="hardware",
    summary="Explains a 671-billion-parameter model by the cluster it was trained on: latent attention, node-limited experts, FP8 and multi-token prediction.",
    claims=(
        Claim(
            "D1",
            "KV bytes/token",
            "70.272 KB",
            baseline="Qwen-2.5-72B 327.680, LLaMA-3.1-405B 516.096 (4.66x, 7.28x)",
            setting="bf16",
            how="model",
        ),
        Claim(
            "D2",
            "training GFLOPs/token",
            "V3 250; V2-236B 155",
            baseline="Qwen-72B 394, LLaMA-405B 2448",
            setting="S=4096",
            how="model",
        ),
        Claim("D3", "params", "671B total, 37B active", setting="config", how="model"),
        Claim(
            "D4",
            "EP-bound TPOT",
            "120.96 us per all-to-all; 14.76 ms; 67 tok/s",
            baseline="GB200 NVL72 900 GB/s: 6.72 us, 0.82 ms, ~1200 tok/s",
            setting="50 GB/s IB",
            how="model",
        ),
        Claim("D5", "MTP", "acceptance 80-90%, 1.8x TPS", baseline="no MTP", setting="decode"),
        Claim("D6", "FP8 loss gap", "< 0.25% relative", baseline="bf16", setting="16B and 230B"),
        Claim("D7", "LogFMT-8 fidelity", "better than E4M3/E5M2 at same bits", setting="residual activations"),
        Claim(
            "D8",
            "network",
            "FT2 2048/96/2048/9M$; MPFT 16384/768/16384/72M (4.39k per endpoint); FT3 65536/5120/131072/491M (7.5k); SF 32928/1568/32928/146M (4.4k); DF 261632/16352/384272/1522M (5.8k): endpoints/switches/links/cost",
            setting="64-port 400G",
            how="model",
        ),
        Claim(
            "D9",
            "MPFT = MRFT training",
            "MFU 43.73 vs 43.68% (non-causal), 38.94 vs 38.90% (causal), 19.926 vs 19.946 s/step, 272.8 vs 272.5 B tokens/day",
            baseline="multi-rail",
            setting="2048 GPUs",
            how="none",
        ),
        Claim("D10", "local run", "~20 TPS on a ~10k$ server with one consumer GPU", setting="R1", how="model"),
    ),
)
