"""AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design."""

from __future__ import annotations

import functools
from typing import Any

from hasten.papers.card import Claim, Context, Paper, Seen
from hasten.papers.measures import judged

paper = Paper(
    slug="accllm",
    title="AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design",
    arxiv="2505.03745",
    year=2025,
    field="hardware",
    summary="Shrinks long-context decoding for edge FPGAs with pruned 2-bit weights, 4-bit caches and a Λ-shaped window, and builds one engine for both phases.",
    pieces=(
        "hasten.methods.solvers:sweep",
        "hasten.kernels.sparse_linear:sparse_linear",
        "hasten.methods:SparseLowBit",
        "hasten.methods:LambdaWindow",
        "hasten.cost.fpga_engine:run",
        "hasten.cost.fpga_engine:pack_products",
    ),
    claims=(
        Claim(
            "X1",
            "decode throughput",
            "164 tok/s",
            baseline="FlightLLM U280 55 (2.98x)",
            setting="Llama-2-7B, U280, cycle-accurate simulator checked against RTL, not a board run",
            how="model",
        ),
        Claim(
            "X2",
            "energy",
            "4.96 tok/J at 33 W",
            baseline="FlightLLM 1.22 tok/J at 45 W (4.07x)",
            setting="same",
            how="model",
        ),
        Claim(
            "X3",
            "others in that table",
            "A100 45, EdgeLLM (VCU128, ChatGLM2-6B) 75, FlightLLM VHK158 92.5 tok/s",
            how="none",
        ),
        Claim(
            "X4",
            "long sequences",
            "stable perplexity beyond the trained length, constant memory",
            baseline="full / window attention",
        ),
        Claim("X5", "accuracy of the stack", "small loss at 7B", baseline="fp16"),
    ),
)

_NEEDS = 100.0
_CONTEXT = 4096


@paper.check("X1")
def _rate(context: Context) -> Seen:
    from hasten.cost.fpga_engine import PLANS, Engine, Sizes, run

    engine, sizes = Engine(), Sizes()
    rates = {
        n: [tokens / run(engine, p, sizes, c).seconds for tokens, c in ((1, 4096), (1, 32768))]
        for n, p in PLANS.items()
    }
    plan = PLANS["2:4, W2, KV4, window 2048"]
    final = run(engine, plan, sizes, _CONTEXT)
    bound = engine.bandwidth / final.bytes
    prompt = run(engine, plan, sizes, 0, 512)
    steps = ", ".join(f"{n} {r[0]:.0f} / {r[1]:.0f}" for n, r in rates.items())
    rate = rates["2:4, W2, KV4, window 2048"][0]
    value = f"tokens/s at 4K / 32K: {steps}; bytes at 460 GB/s allow {bound:.0f}; decode bound by {final.bound}, prompt by {prompt.bound}"
    return Seen(
        value,
        164 <= rate <= bound and abs(bound - 205) < 3 and final.bound == "memory" and prompt.bound == "compute",
        bound >= 164,
    )


@paper.check("X2")
def _energy(context: Context) -> Seen:
    from hasten.cost.fpga_engine import PLANS, Engine, Sizes, run

    phase = run(Engine(), PLANS["2:4, W2, KV4, window 2048"], Sizes(), _CONTEXT)
    watts, each = phase.energy / phase.seconds, 1 / phase.energy
    value = f"{each:.2f} tokens/J at {watts:.0f} W (published 4.96 at 33 W; 164 / 33 = {164 / 33:.2f}), {each / 1.22:.2f}x FlightLLM's 1.22"
    return Seen(value, abs(each / 4.96 - 1) < 0.15 and abs(watts / 33 - 1) < 0.15, each > 1.22)


def _byte_model(steps: int, seed: int) -> Any:
    """A small character model trained at a length of 128."""
    import torch
    import transformers

    from hasten.data.text import characters, sources
    from hasten.train.fitting import fit, windows

    torch.manual_seed(seed)
    ids, alphabet = characters(sources(1_500_000))
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet), hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    batches = windows(ids[: int(0.9 * len(ids))], 128, 16, seed)

    def loss(step: int) -> torch.Tensor:
        window = next(batches)
        return torch.nn.functional.cross_entropy(network(window[:, :-1]).logits.flatten(0, 1), window[:, 1:].flatten())

    fit(network, loss, steps=steps, peak=3e-3)
    return network.eval(), ids[int(0.9 * len(ids)) :]


def _streamed(network: Any, ids: Any, spec: Any, length: int) -> Any:
    """Loss of each position of a few texts read through a cache: (length)."""
    import torch

    from hasten.runtime import LanguageModel

    model = LanguageModel(network, cache=spec)
    rows = torch.stack([ids[s : s + length + 1] for s in range(0, 4 * length, length)])
    cache = model.new_cache(len(rows), length)
    losses = []
    with torch.inference_mode():
        for at in range(0, length, 32):
            part = rows[:, at : at + 32]
            logits = model(part, past_key_values=cache).logits
            target = rows[:, at + 1 : at + 1 + part.shape[1]]
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            losses.append(each.view(len(rows), -1).mean(0))
    return torch.cat(losses), cache.nbytes


@paper.check("X4")
def _long(context: Context) -> Seen:
    from hasten.runtime import CacheSpec

    enough = context.budget >= _NEEDS
    network, held = _byte_model(4000 if context.budget >= 1500 else 700 if enough else 3, context.seed)
    length = 2048 if enough else 256
    arms = {
        "everything": CacheSpec(),
        "window": CacheSpec("fp32", 124),
        "capped window with sinks": CacheSpec("fp32", 124, 4, capped=True),
    }
    end, sizes, start = {}, {}, 0.0
    for name, spec in arms.items():
        losses, sizes[name] = _streamed(network, held, spec, length)
        end[name] = float(losses[-512:].mean())
        start = float(losses[64:128].mean()) if name == "everything" else start
    value = (
        f"trained at 128 characters (loss there {start:.3f}), read on to {length}: "
        + ", ".join(f"{n} {v:.3f}" for n, v in end.items())
        + f"; cache {sizes['everything'] / sizes['capped window with sinks']:.0f}x smaller, and constant"
    )
    ours = end["capped window with sinks"]
    return judged(
        context, value, ours < 1.03 * start and end["everything"] > 1.1 * start, ours < end["everything"], needs=_NEEDS
    )


@functools.cache
def _perplexities(budget: float, seed: int) -> dict[str, float]:
    import copy

    from hasten.data.text import default_text
    from hasten.methods.solvers import Rounding
    from hasten.methods.sparse_low_bit import Int8Activations, SparseLowBit, calibration, compress, solver
    from hasten.models import load_network
    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.quality import perplexity

    loaded = load_network()
    tokens = loaded.tokenizer(default_text()[:20000], add_special_tokens=False, verbose=False)["input_ids"]
    enough = budget >= _NEEDS

    def fresh() -> LanguageModel:
        network = loaded.network
        tensors = (*network.parameters(), *network.buffers())
        return LanguageModel(copy.deepcopy(network, {id(t): t for t in tensors}), loaded.tokenizer)

    def score(model: LanguageModel) -> float:
        return perplexity(model, tokens, context=128, scored=256 if enough else 16, segments=4 if enough else 1).value

    found = {"dense": score(fresh())}
    quantized = fresh()
    quantized.cache = CacheSpec("int4")
    found["KV4"] = score(quantized)
    if not enough:
        return found
    ids = calibration(fresh(), 8, 512)
    import torch

    eight = fresh()
    for layer in eight.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, Int8Activations(module))
    found["A8"] = score(eight)
    rounding = Rounding(2, 64)
    for name in ("magnitude", "wanda", "sparsegpt", "gptq", "joint", "prune, then round", "round"):
        model = fresh()
        compress(model, ids, solver(name, rounding))
        found[name] = score(model)
    packed = fresh()
    SparseLowBit(8).apply(packed)
    packed.cache = CacheSpec("int4")
    found["whole stack"] = score(packed)
    return found


@paper.check("X5")
def _stack(context: Context) -> Seen:
    seen = _perplexities(context.budget, context.seed)
    if "whole stack" not in seen:
        return judged(context, f"perplexity {seen['dense']:.1f}, with KV4 {seen['KV4']:.1f}", False, needs=_NEEDS)
    value = (
        f"perplexity of SmolLM2-135M {seen['dense']:.1f}; 2:4 by magnitude {seen['magnitude']:.0f}, Wanda {seen['wanda']:.0f},"
        f" SparseGPT {seen['sparsegpt']:.0f}; W2 rounded {seen['round']:.0f}, GPTQ {seen['gptq']:.0f}; 2:4 and W2 jointly"
        f" {seen['joint']:.0f}, one after the other {seen['prune, then round']:.0f}; A8 {seen['A8'] / seen['dense'] - 1:+.1%}, KV4"
        f" {seen['KV4'] / seen['dense'] - 1:+.1%}; the whole packed stack {seen['whole stack']:.0f}: usable quality is a claim about 7B"
    )
    return judged(context, value, seen["whole stack"] < 1.1 * seen["dense"], False, needs=_NEEDS)
