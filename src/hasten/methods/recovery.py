"""Low-bit weights trained back towards the whole model by distillation (AccLLM).

For a calibration text the compressed model is trained to say of the next token what the whole model says. Weights move
behind their rounding (straight-through), scales and norms with them; what is pruned stays pruned.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels import sparse_linear as kernel
from hasten.kernels.groups import half_scales
from hasten.runtime.language_model import LanguageModel
from hasten.train.loop import train
from hasten.train.schedules import Linear


class LowBitLinear(nn.Module):
    """A linear layer whose 2:4 weights are rounded to two bits at every use, and can be trained.

    Args:
        weight: (out, in) as solved, zero where pruned.
        scales, zeros: (out, in / 64).
        bias: (out) or None.
    """

    zeros: Tensor
    kept: Tensor

    def __init__(self, weight: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.latent = nn.Parameter(weight.detach().float().clone())
        self.scales = nn.Parameter(scales.detach().float().clone())
        self.register_buffer("zeros", zeros.detach().float())
        self.register_buffer("kept", weight.detach() != 0)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]

    @property
    def half_scales(self) -> Tensor:
        """Scales as fp16 keeps them, with a gradient."""
        scales = self.scales.clamp(min=2.0**-24)
        return scales + (half_scales(scales).float() - scales).detach()

    @property
    def weight(self) -> Tensor:
        """(out, in) as rounded."""
        scale, zero = (t.repeat_interleave(kernel.GROUP, 1) for t in (self.half_scales, self.zeros))
        places = self.latent / scale
        codes = (places + (places.round() - places).detach() + zero).clamp(0, 3)
        return scale * (codes - zero) * self.kept

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def pack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes, scales and zero points as `hasten.kernels.sparse_linear` takes them."""
        return kernel.pack(self.weight.detach(), self.half_scales.detach(), self.zeros)


@torch.no_grad()
def last_states(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the whole model's head reads for ``ids`` (n, length): (n, length, hidden), much smaller than logits."""
    found: list[Tensor] = []
    # What the last norm gives is what the head reads, whatever the network calls its parts.
    watch = model.decoder.norm.register_forward_hook(lambda module, args, output: found.append(output.float()))
    try:
        for part in ids.split(1):
            model.network(part, use_cache=False, logits_to_keep=1)
    finally:
        watch.remove()
    return torch.cat(found)


@torch.enable_grad()
def recover(
    model: LanguageModel,
    ids: Tensor,
    states: Tensor,
    *,
    seconds: float = 120.0,
    steps: int | None = None,
    rate: float = 0.02,
    length: int = 256,
) -> tuple[float, float]:
    """Distils the whole model into its `LowBitLinear` modules and its norms: the same distributions of the next token.

    A tenth of the text is not trained on; where its divergence does not fall, everything stays as it was.

    Args:
        model: changed in place; its output head is the whole model's.
        ids: (n, length) tokens.
        states: of the whole model for them, by `last_states`.
        seconds: of training.
        steps: whatever the time; None to go by ``seconds``.
        rate: of a weight's step as a share of its scale; scales take a quarter of it.
        length: tokens of a step.

    Returns:
        Kullback-Leibler divergence from the whole model, nats a token, before and after, on what was not trained on.

    Raises:
        HastenError: states of another model or another text, or nothing to train.
    """
    network, head, read = model.network, model.decoder.head, model.decoder.norm.weight.dtype
    modules = [m for m in network.modules() if isinstance(m, LowBitLinear)]
    if states.shape != (*ids.shape, int(model.config.hidden_size)):
        raise HastenError("recovery needs the whole model's states for the same text: make them by last_states")
    if not modules:
        raise HastenError("there is nothing to recover: compress the model by `trainable` first")
    width = min(length, ids.shape[1])
    parts = ids.shape[1] // width
    texts = ids[:, : parts * width].reshape(-1, width)
    wanted = states[:, : parts * width].reshape(-1, width, states.shape[-1])
    held = range(len(texts) - max(1, len(texts) // 10), len(texts))
    learned = held.start or 1  # a single text is both

    def divergence(at: int) -> Tensor:
        with torch.no_grad():
            # The head reads states in the network's own format.
            target = head(wanted[at : at + 1].to(read)).float().log_softmax(-1)
        found = network(texts[at : at + 1], use_cache=False).logits.float().log_softmax(-1)
        return torch.nn.functional.kl_div(found, target, log_target=True, reduction="none").sum(-1).mean()

    @torch.no_grad()
    def judged() -> float:
        return sum(float(divergence(at)) for at in held) / len(held)

    norms = _own_norms(network)
    before = judged()
    trained = [p for m in modules for p in (m.latent, m.scales)] + norms
    kept = [p.detach().clone() for p in trained]
    wants = {id(p): p.requires_grad for p in network.parameters()}
    network.requires_grad_(False)
    rates = [share * float(m.scales.detach().mean()) for m in modules for share in (rate, 0.25 * rate)]
    rates += [0.05 * rate] * len(norms)
    optimizer = torch.optim.Adam(
        [{"params": [p], "lr": r} for p, r in zip(trained, rates, strict=True)], betas=(0.9, 0.95)
    )
    for p in trained:
        p.requires_grad_(True)
    try:
        generator = torch.Generator().manual_seed(0)
        train(
            network,
            lambda step: divergence(int(torch.randint(learned, (), generator=generator))),
            optimizer=optimizer,
            steps=steps,
            seconds=seconds if steps is None else None,
            schedule=Linear(0.02),
            keep=0,  # all of it is kept above, and comes back when it has not become better
            clock=time.monotonic,
        )
        after = judged()
        if not after < before:
            after = before
            with torch.no_grad():
                for p, old in zip(trained, kept, strict=True):
                    p.copy_(old)
    finally:
        for p in network.parameters():
            p.requires_grad_(wants[id(p)])
            p.grad = None
    return before, after


def _own_norms(network: nn.Module) -> list[nn.Parameter]:
    """Weights of the normalizations, as new tensors: copies of a model may share the old ones."""
    found = []
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" in name.rpartition(".")[2] and isinstance(weight, nn.Parameter):
            module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            found.append(module.weight)
    return found
