"""LlamaRL: A Distributed Asynchronous Reinforcement Learning Framework for Efficient Large-scale LLM Training."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="llamarl",
    title="LlamaRL: A Distributed Asynchronous Reinforcement Learning Framework for Efficient Large-scale LLM Training",
    arxiv="2505.24034",
    year=2025,
    field="training",
    summary="Runs generator, reward and trainer of reinforcement learning asynchronously, and corrects for the lag.",
    claims=(
        Claim(
            "R1",
            "step time",
            "405B 635.8 -> 59.5 s (10.7x); 70B 82.32 -> 20.67 (3.98x), 8B 22.45 -> 8.90 (2.52x) (last two memory)",
            baseline="DeepSpeed-Chat-like synchronous",
            setting="H100s above",
            how="model",
        ),
        Claim(
            "R2",
            "async is strictly faster",
            "theorem",
            baseline="sync, same GPUs",
            setting="assumptions above",
            how="model",
        ),
        Claim("R3", "quality unchanged", "same MATH/GSM8K scores", baseline="on-policy sync", setting="8B-405B"),
        Claim(
            "R4",
            "off-policy correction stabilises",
            "without it training may collapse",
            baseline="uncorrected",
            setting="lag >= 1, quantised generator",
        ),
        Claim(
            "R5",
            "weight sync",
            "405B about 2 s; 70B 1.15 s vs 111.65 s for OpenRLHF",
            baseline="gather + broadcast",
            how="model",
        ),
        Claim("R6", "scales to thousands of GPUs", "scales to thousands of GPUs", how="none"),
    ),
)
