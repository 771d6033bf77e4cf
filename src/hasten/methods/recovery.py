"""Low-bit weights trained back towards the whole model, a layer at a time, without another pass over a corpus (AccLLM).

What a decoder layer puts out for a calibration text is known from the whole model; the compressed layer, fed by the
compressed ones before it, is trained to put out the same. Weights move behind their rounding (straight-through), scales
with them; what is pruned stays pruned.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.kernels import sparse_linear as kernel
from hasten.runtime.language_model import LanguageModel


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
        scales = self.scales.clamp(min=1e-7)
        return scales + (scales.half().float() - scales).detach()

    @property
    def weight(self) -> Tensor:
        """(out, in) as rounded."""
        scale, zero = (t.repeat_interleave(kernel.GROUP, 1) for t in (self.half_scales, self.zeros))
        places = self.latent / scale
        codes = (places + (places.round() - places).detach() + zero).clamp(0, 3)
        return scale * (codes - zero) * self.kept

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def pack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes, scales and zero points as `hasten.kernels.sparse_linear` takes them."""
        return kernel.pack(self.weight.detach(), self.half_scales.detach(), self.zeros)


def _inputs(model: LanguageModel, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    inner = model.network.model
    state = inner.embed_tokens(ids).float()
    return state, inner.rotary_emb(state, position_ids=torch.arange(ids.shape[1])[None])


def _run(layer: Any, state: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    out = layer(state, attention_mask=None, position_embeddings=turns, past_key_values=None)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def layer_outputs(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """What every decoder layer of the whole model puts out for ``ids`` (n, length): (n, length, hidden) each."""
    state, turns = _inputs(model, ids)
    found = []
    for layer in model.layers:
        state = torch.cat([_run(layer, part, turns) for part in state.split(1)])
        found.append(state)
    return found


@torch.enable_grad()
def recover(
    model: LanguageModel,
    ids: Tensor,
    outputs: list[Tensor],
    *,
    seconds: float = 60.0,
    steps: int | None = None,
    rate: float = 0.05,
) -> list[tuple[float, float]]:
    """Trains every layer's `LowBitLinear` modules towards ``outputs``; one that got no better stays as it was.

    Args:
        model: changed in place.
        ids: (n, length), what ``outputs`` were made of.
        outputs: of the whole model, by `layer_outputs`.
        seconds: for all layers, shared out evenly; a layer takes a step at least.
        steps: of each layer, whatever the time; None to go by ``seconds``.
        rate: of a step, as a share of a weight's scale.

    Returns:
        relative squared error of each layer before and after.

    Raises:
        HastenError: outputs of another model or another text.
    """
    if len(outputs) != len(model.layers) or outputs[0].shape[:2] != ids.shape:
        raise HastenError("recovery needs the outputs of the same layers for the same text: make them by layer_outputs")
    with torch.no_grad():
        states, turns = _inputs(model, ids)
    until, history = time.monotonic(), []
    for layer, wanted in zip(model.layers, outputs, strict=True):
        until += seconds / len(outputs)
        scale = wanted.square().mean()
        modules = [m for m in layer.modules() if isinstance(m, LowBitLinear)]

        @torch.no_grad()
        def error(layer: Any = layer, states: Tensor = states, wanted: Tensor = wanted, scale: Tensor = scale) -> float:
            parts = [(_run(layer, s, turns) - w).square().mean() for s, w in zip(states.split(1), wanted.split(1))]
            return float(torch.stack(parts).mean() / scale)

        before = after = error()
        if modules:
            kept = [(m.latent.detach().clone(), m.scales.detach().clone()) for m in modules]
            groups: list[dict[str, Any]] = []
            for m in modules:
                step = rate * float(m.scales.detach().mean())
                groups += [{"params": [m.latent], "lr": step}, {"params": [m.scales], "lr": 0.1 * step}]
            optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
            trained = [p for m in modules for p in (m.latent, m.scales)]
            turn = 0
            while not turn or (time.monotonic() < until if steps is None else turn < steps):
                at = turn % len(ids)
                loss = (_run(layer, states[at : at + 1], turns) - wanted[at : at + 1]).square().mean() / scale
                # Of these weights alone: the layer's others are not touched.
                for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                    p.grad = gradient
                optimizer.step()
                turn += 1
            after = error()
            if not after < before:
                after = before
                with torch.no_grad():
                    for m, (latent, scales) in zip(modules, kept, strict=True):
                        m.latent.copy_(latent)
                        m.scales.copy_(scales)
        history.append((before, after))
        with torch.no_grad():
            states = torch.cat([_run(layer, s, turns) for s in states.split(1)])
    return history
