"""FASIONAD++ : Integrating High-Level Instruction and Information Bottleneck in FAt-Slow fusION ..."""

from hasten.papers.card import Claim, Paper

paper = Paper(
    slug="fasionad",
    title="FASIONAD++ : Integrating High-Level Instruction and Information Bottleneck in FAt-Slow fusION Systems for Enhanced Safety in Autonomous Driving with Adaptive Feedback",
    arxiv="2503.08162",
    year=2025,
    field="inference",
    summary="Drives with a cheap planner and asks a slow reasoner only when the planner is unsure.",
    claims=(
        Claim("C1", "average L2", "-6.7%", baseline="strong E2E planner", setting="nuScenes open loop"),
        Claim("C2", "collision rate", "-28.1%", baseline="same", setting="same"),
        Claim("C3", "slow-module calls", "> 60% fewer", baseline="fixed-interval dual system"),
        Claim("C4", "closed loop", "better driving score, Town05 Short / Bench2Drive", setting="CARLA", how="none"),
        Claim("C5", "ablation", "gate, IB, high-level plan, visual prompts each help"),
    ),
)
