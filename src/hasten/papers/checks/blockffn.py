"""BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.cost.measuring import alternating
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.kernels import native
from hasten.kernels.expert_ffn import expert_ffn
from hasten.models.language.blockffn_lm import PUBLISHED, BlockFFNConfig, BlockFFNLM
from hasten.nn.blockffn import (
    activation_locality,
    chunk_sparsification,
    chunk_sparsity,
    expert_histogram,
    expert_reuse,
    token_sparsity,
)
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.runtime.decoding.chunked import speculate
from hasten.tasks.task import Batch
from hasten.tasks.text import Text
from hasten.train import fit

# Feed-forward, and the weights of the loss of locality and of the one of chunks.
ARMS = {
    "no extra losses": ("block", 0.0, 0.0),
    "both losses": ("block", 2e-3, 0.2),
    "top-6": ("top-k", 0.0, 0.0),
    "dense": ("dense", 0.0, 0.0),
}


@dataclass(frozen=True)
class Arm:
    """A trained small model: test loss in nats a character, sparsity of tokens and chunks, reuse, weights.

    ``fired`` is the number of experts by the share of tokens that use them, in tenths, over all layers.
    """

    loss: float
    sparsity: float
    chunks: dict[int, float]
    reuse: float
    fired: list[int]
    state: dict[str, Tensor]


def _text() -> Text:
    return Text(splits=(0.9, 0.1))


def _arm(feed_forward: Any, locality: float, chunk: float, steps: int, seed: int) -> Arm:
    """Trains a character model of Python sources with the two losses at these weights."""
    task = _text()
    torch.manual_seed(seed)
    model = BlockFFNLM(BlockFFNConfig(vocabulary=task.classes, feed_forward=feed_forward))

    def loss(batch: Batch) -> Tensor:
        total = task.loss(model, batch)
        routers = model.logits_of_routers() if locality or chunk else []
        for logits in routers:
            extra = locality * activation_locality(logits) + chunk * chunk_sparsification(logits)
            total = total + extra / len(routers)
        return total

    batches = task.batches("training", 16, seed)
    fit(model, lambda step: loss(next(batches)), steps=steps, peak=3e-3, weight_decay=0.1)
    value = task.evaluate(model, size=64, batches=1, seed=1)
    with torch.no_grad():
        routers = model.logits_of_routers()
    chunks = {size: sum(chunk_sparsity(r, size) for r in routers) / max(1, len(routers)) for size in (1, 8, 64)}
    return Arm(
        value,
        sum(token_sparsity(r) for r in routers) / max(1, len(routers)),
        chunks,
        sum(expert_reuse(r) for r in routers) / max(1, len(routers)),
        expert_histogram(routers),
        {name: tensor.detach() for name, tensor in model.state_dict().items()} if chunk else {},
    )


@shared(weight=300)
def trained(experiment: Experiment) -> dict[str, Arm]:
    """Four small models of the same text."""
    steps = experiment.at(quick=2, normal=experiment.steps(400))
    plan = {name: (*arm, steps, experiment.seed) for name, arm in ARMS.items()}
    return succeeded(experiment.arms(_arm, plan), plan)[0]


@check("F1", weight=1, needs=120)
def sparsity(experiment: Experiment) -> Seen:
    """Share of experts that a token, and a chunk of tokens together, leave alone."""
    arms = experiment.once(trained)
    value = "; ".join(
        f"{name}: TLS {arm.sparsity:.2f}, CLS_8 {arm.chunks[8]:.2f}, CLS_64 {arm.chunks[64]:.2f}"
        for name, arm in arms.items() if name != "dense"
    )  # fmt: skip
    ours, top = arms["both losses"], arms["top-6"]
    value += "; experts by the share of tokens that use them, in tenths: " + ", ".join(
        f"{name} {' '.join(map(str, arm.fired))}" for name, arm in arms.items() if name != "dense"
    )
    return experiment.judge(value, ours.sparsity >= 0.8 and ours.chunks[8] >= 0.7, ours.chunks[8] > top.chunks[8])


@check("F2", weight=1, needs=120)
def quality(experiment: Experiment) -> Seen:
    """Loss beside top-k routing at about the same sparsity."""
    arms = experiment.once(trained)
    value = "validation loss, nats a character: " + ", ".join(f"{name} {arm.loss:.3f}" for name, arm in arms.items())
    ours = arms["both losses"]
    close = ours.sparsity >= arms["top-6"].sparsity - 0.05
    return experiment.judge(
        value, close and ours.loss <= arms["top-6"].loss, ours.loss <= 1.05 * arms["no extra losses"].loss
    )


@check("F3", weight=1, needs=120)
def losses(experiment: Experiment) -> Seen:
    """What the two extra losses do to the sparsity of chunks."""
    arms = experiment.once(trained)
    plain, ours, top = arms["no extra losses"], arms["both losses"], arms["top-6"]
    value = (
        f"CLS_8 {plain.chunks[8]:.2f} without the losses, {ours.chunks[8]:.2f} with them (top-6: {top.chunks[8]:.2f}); "
        f"loss {plain.loss:.3f} and {ours.loss:.3f}"
    )
    gain = ours.chunks[8] - plain.chunks[8]
    holds = gain >= 0.25 and ours.chunks[8] >= top.chunks[8] and ours.loss <= 1.05 * plain.loss
    return experiment.judge(value, holds, gain > 0)


@check("F4", weight=15, needs=120)
def decoding(experiment: Experiment) -> Seen:
    """Bytes that a token reads on the paper's board, with and without the union over a speculative chunk."""
    arms, task = experiment.once(trained), _text()
    model = BlockFFNLM(BlockFFNConfig(vocabulary=task.classes))
    model.load_state_dict(arms["both losses"].state)
    model.eval()
    prompt = task.parts["test"][-600:-300]
    found = speculate(model, prompt, experiment.at(quick=8, normal=300))
    plain = model.generate(prompt[None], len(found.ids) - len(prompt))[0]
    if not torch.equal(plain, found.ids):
        raise HastenError("speculative decoding changed the text: report this")
    # The same shares at a published size: everything that is not an expert is read once a step.
    width, layers, _, experts, each = PUBLISHED["blockffn-1.2b"]
    with torch.device("meta"):
        big = BlockFFNLM.named("blockffn-1.2b")
    total = sum(p.numel() for n, p in big.named_parameters() if not n.startswith("embeddings")) * 2
    one = 2 * width * each * 2
    bandwidth = load_device("orin").main_memory.bandwidth
    fixed = total - layers * experts * one
    scale = layers * experts / (3 * 32)
    loaded = found.experts / found.steps * scale * one
    kept = found.tokens / found.steps
    dense, sparse = total / bandwidth, (fixed + loaded) / kept / bandwidth
    value = (
        f"{kept:.2f} tokens a step, {found.experts / max(1, found.without):.2f} of the expert loads of single tokens; at 1.2B "
        f"in bf16 on a Jetson Orin that is {1 / dense:.0f} tokens/s dense, {1 / sparse:.0f} in chunks ({dense / sparse:.2f}x)"
    )
    return experiment.judge(value, dense / sparse >= 3.67, dense / sparse > 1)


@check("F5", weight=5)
def kernel(experiment: Experiment) -> Seen:
    """One token at 80 % sparsity, and eight whose union is 30 %, against the dense layer at the same weights."""
    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    width, experts, each = 1024, 64, 64
    generator = torch.Generator().manual_seed(experiment.seed)
    up, down = torch.randn(2, experts * each, width, generator=generator) / 32
    columns = down.T.contiguous()

    def dense(x: Tensor, scores: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, up)) * scores.repeat_interleave(each, -1), columns)

    ratios = {}
    for tokens, share in ((1, 0.2), (8, 0.3)):
        union = torch.randperm(experts, generator=generator)[: round(share * experts)]
        scores = torch.zeros(tokens, experts)
        scores[:, union] = torch.rand(tokens, len(union), generator=generator) + 0.1
        if tokens > 1:
            # A token uses two thirds of the union: 80 % sparsity for each, 70 % for the chunk.
            scores *= torch.rand(tokens, experts, generator=generator) < 2 / 3
            scores[0, union] = 1.0
        x = torch.randn(tokens, width, generator=generator)
        if float((expert_ffn(x, scores, up, down) - dense(x, scores)).abs().max()) > 1e-4:
            raise HastenError("the sparse layer differs from the dense one: report this")
        calls = {
            "dense": functools.partial(dense, x, scores),
            "sparse": functools.partial(expert_ffn, x, scores, up, down),
        }
        least = {name: min(times) for name, times in alternating(calls, 20).items()}
        ratios[tokens] = least["dense"] / least["sparse"]
    value = f"width 1024, 64 experts of 64: one token {ratios[1]:.1f}x the dense layer, eight {ratios[8]:.1f}x"
    return experiment.judge(value, ratios[1] >= 2.5 and ratios[8] >= 1.5, min(ratios.values()) > 1)


@check("F6", weight=1, needs=120)
def reuse(experiment: Experiment) -> Seen:
    """Share of a token's experts that the token before used too."""
    arms = experiment.once(trained)
    value = "experts that the token before used too: " + ", ".join(
        f"{name} {arm.reuse:.0%}" for name, arm in arms.items() if name != "dense"
    )
    return experiment.judge(value, arms["both losses"].reuse > 0.8, arms["both losses"].reuse > arms["top-6"].reuse)
