"""BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.cost.measuring import least_seconds
from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """A trained small model: validation loss in nats a character, sparsity of tokens and chunks, reuse, weights."""

    loss: float
    sparsity: float
    chunks: dict[int, float]
    reuse: float
    state: dict[str, Any]


def _arm(feed_forward: str, locality: float, chunk: float, steps: int, seed: int) -> Arm:
    """Trains a character model of Python sources with the two losses at these weights."""
    import torch
    from torch.nn import functional as F

    from hasten.data.text import characters, sources
    from hasten.models.language.blockffn_lm import BlockFFNConfig, BlockFFNLM
    from hasten.nn.blockffn import (
        activation_locality,
        chunk_sparsification,
        chunk_sparsity,
        expert_reuse,
        token_sparsity,
    )
    from hasten.train.fitting import fit, windows

    ids, alphabet = characters(sources(1_500_000))
    training, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    torch.manual_seed(seed)
    model = BlockFFNLM(BlockFFNConfig(vocabulary=len(alphabet), feed_forward=feed_forward))  # type: ignore[arg-type]
    batches = windows(training, 128, 16, seed)

    def loss_of(window: Tensor) -> Tensor:
        return F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())

    def loss(step: int) -> Tensor:
        total = loss_of(next(batches))
        routers = model.logits_of_routers() if locality or chunk else []
        for logits in routers:
            extra = locality * activation_locality(logits) + chunk * chunk_sparsification(logits)
            total = total + extra / len(routers)
        return total

    fit(model, loss, steps=steps, peak=3e-3, weight_decay=0.1)
    with torch.no_grad():
        value = float(loss_of(next(windows(held, 128, 64, 1))))
        routers = model.logits_of_routers()
    chunks = {size: sum(chunk_sparsity(r, size) for r in routers) / max(1, len(routers)) for size in (1, 8, 64)}
    return Arm(
        value,
        sum(token_sparsity(r) for r in routers) / max(1, len(routers)),
        chunks,
        sum(expert_reuse(r) for r in routers) / max(1, len(routers)),
        {name: tensor.detach() for name, tensor in model.state_dict().items()} if chunk else {},
    )


ARMS = {
    "no extra losses": ("block", 0.0, 0.0),
    "both losses": ("block", 2e-3, 0.2),
    "top-6": ("top-k", 0.0, 0.0),
    "dense": ("dense", 0.0, 0.0),
}


@functools.cache
def _arms(steps: int, seed: int, experiment: Experiment) -> dict[str, Arm]:
    from hasten.processes import run_arms

    told = lambda share: experiment.run.progress("blockffn: training four small models", share)  # noqa: E731
    found = run_arms(_arm, [(*arm, steps, seed) for arm in ARMS.values()], progress=told)
    return dict(zip(ARMS, found))


def _trained(experiment: Experiment) -> dict[str, Arm]:
    return _arms(max(2, min(400, int(experiment.paper_budget * 400 / 300))), experiment.seed, experiment)


@check("F1", needs=100)
def _sparsity(experiment: Experiment) -> Seen:
    arms = _trained(experiment)
    value = "; ".join(
        f"{name}: TLS {arm.sparsity:.2f}, CLS_8 {arm.chunks[8]:.2f}, CLS_64 {arm.chunks[64]:.2f}"
        for name, arm in arms.items() if name != "dense"
    )  # fmt: skip
    ours, top = arms["both losses"], arms["top-6"]
    return experiment.judge(value, ours.sparsity >= 0.8 and ours.chunks[8] >= 0.7, ours.chunks[8] > top.chunks[8])


@check("F2", needs=100)
def _quality(experiment: Experiment) -> Seen:
    arms = _trained(experiment)
    value = "validation loss, nats a character: " + ", ".join(f"{name} {arm.loss:.3f}" for name, arm in arms.items())
    ours = arms["both losses"]
    close = ours.sparsity >= arms["top-6"].sparsity - 0.05
    return experiment.judge(
        value, close and ours.loss <= arms["top-6"].loss, ours.loss <= 1.05 * arms["no extra losses"].loss
    )


@check("F3", needs=100)
def _losses(experiment: Experiment) -> Seen:
    arms = _trained(experiment)
    plain, ours, top = arms["no extra losses"], arms["both losses"], arms["top-6"]
    value = (
        f"CLS_8 {plain.chunks[8]:.2f} without the losses, {ours.chunks[8]:.2f} with them (top-6: {top.chunks[8]:.2f}); "
        f"loss {plain.loss:.3f} and {ours.loss:.3f}"
    )
    gain = ours.chunks[8] - plain.chunks[8]
    holds = gain >= 0.25 and ours.chunks[8] >= top.chunks[8] and ours.loss <= 1.05 * plain.loss
    return experiment.judge(value, holds, gain > 0)


@check("F4", needs=100)
def _decoding(experiment: Experiment) -> Seen:
    """Bytes that a token reads on the paper's board, with and without the union over a speculative chunk."""
    import torch

    from hasten.hardware import load_device
    from hasten.models.language.blockffn_lm import PUBLISHED, BlockFFNConfig, BlockFFNLM
    from hasten.runtime.decoding.chunked import speculate

    arms = _trained(experiment)
    alphabet = arms["both losses"].state["embeddings.weight"].shape[0]
    model = BlockFFNLM(BlockFFNConfig(vocabulary=alphabet))
    model.load_state_dict(arms["both losses"].state)
    model.eval()
    from hasten.data.text import characters, sources

    ids, _ = characters(sources(1_500_000))
    prompt = ids[-600:-300]
    found = speculate(model, prompt, 20 if experiment.paper_budget < 100 else 300)
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


@check("F5")
def _kernel(experiment: Experiment) -> Seen:
    """One token at 80 % sparsity, and eight whose union is 30 %, against the dense layer at the same weights."""
    import torch
    from torch.nn import functional as F

    from hasten.kernels import native
    from hasten.kernels.expert_ffn import expert_ffn

    if native() is None:
        raise HastenError("the compiled kernels are not installed: install a C++ compiler and hasten again")
    width, experts, each = 1024, 64, 64
    generator = torch.Generator().manual_seed(experiment.seed)
    up, down = torch.randn(2, experts * each, width, generator=generator) / 32
    columns = down.T.contiguous()
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

        def dense(x: Tensor = x, scores: Tensor = scores) -> Tensor:
            return F.linear(F.silu(F.linear(x, up)) * scores.repeat_interleave(each, -1), columns)

        if float((expert_ffn(x, scores, up, down) - dense()).abs().max()) > 1e-4:
            raise HastenError("the sparse layer differs from the dense one: report this")
        ratios[tokens] = least_seconds(dense, 20) / least_seconds(lambda x=x, s=scores: expert_ffn(x, s, up, down), 20)  # type: ignore[misc]
    value = f"width 1024, 64 experts of 64: one token {ratios[1]:.1f}x the dense layer, eight {ratios[8]:.1f}x"
    return Seen(value, ratios[1] >= 2.5 and ratios[8] >= 1.5, min(ratios.values()) > 1)


@check("F6", needs=100)
def _reuse(experiment: Experiment) -> Seen:
    arms = _trained(experiment)
    value = "experts that the token before used too: " + ", ".join(
        f"{name} {arm.reuse:.0%}" for name, arm in arms.items() if name != "dense"
    )
    return experiment.judge(value, arms["both losses"].reuse > 0.8, arms["both losses"].reuse > arms["top-6"].reuse)
