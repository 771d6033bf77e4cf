"""New Solutions on LLM Acceleration, Optimization, and Application."""

from __future__ import annotations

import functools
from typing import Any

from hasten.papers.card import Claim, Context, Paper, Seen
from hasten.papers.measures import judged, least_seconds

paper = Paper(
    slug="llm-acceleration",
    title="New Solutions on LLM Acceleration, Optimization, and Application",
    arxiv="2406.10903",
    year=2024,
    field="inference",
    summary="Surveys its authors' work from parallel decoding and cache compression to language models that debug circuits.",
    pieces=(
        "hasten.runtime.medusa:MedusaHeads",
        "hasten.runtime.medusa:decode",
        "hasten.runtime.policies:SnapKV",
        "hasten.runtime.early_exit:generate",
        "hasten.data.hls_bugs:build",
        "hasten.methods:SnapKV",
    ),
    claims=(
        Claim(
            "L1",
            "Medusa speed",
            "2.2x (Medusa-1), 2.3-3.6x (Medusa-2)",
            baseline="autoregressive",
            setting="7B-33B GPU",
        ),
        Claim(
            "L2",
            "SnapKV",
            "3.6x decode speed, 8.2x memory at 16K; 380K context on one A100-80GB",
            baseline="full KV",
            setting="LWM-7B",
        ),
        Claim(
            "L3",
            "AutoDistill",
            "up to +3.2% pretraining accuracy, 1.44x latency; 28.5M params GLUE 81.69; 20.6M smallest",
            baseline="MobileBERT 25.3M",
            setting="TPUv4i",
            how="none",
        ),
        Claim("L4", "HIDA", "up to 8.54x / 1.29x", baseline="HLS SOTA / RTL", setting="FPGA", how="none"),
        Claim("L5", "Chrysalis", "> 1,000 designs, 19 bug types seen"),
    ),
)

_NEEDS = 60.0


@functools.cache
def _model() -> tuple[Any, Any, list[int]]:
    """The real model as its file packs it, its tokenizer, and a text's tokens."""
    from hasten.data.text import default_text
    from hasten.models import load_packed
    from hasten.runtime import LanguageModel

    loaded = load_packed(bf16=True, int8=True)
    ids = loaded.tokenizer(default_text()[:250000], add_special_tokens=False, verbose=False)["input_ids"]
    return LanguageModel(loaded.network, loaded.tokenizer), loaded.tokenizer, ids


@paper.check("L1")
def _medusa(context: Context) -> Seen:
    import torch

    from hasten.runtime.medusa import MedusaHeads, Tree, best_size, decode, fit, own_text, rank_accuracy

    model, _, tokens = _model()
    enough = context.budget >= _NEEDS
    long = context.budget >= 1500
    prompts, made = (256 if long else 96 if enough else 4), (96 if enough else 16)
    seconds = 900.0 if long else 100.0 if enough else 1.0
    length = 32
    starts = torch.linspace(0, len(tokens) * 0.8 - length, prompts).long().tolist()
    ids = torch.tensor([tokens[s : s + length] for s in starts])
    parts = [own_text(model, part, made) for part in ids.split(16)]
    text, states = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]).float()
    held = max(2, prompts // 12)
    heads = MedusaHeads(int(model.config.hidden_size), 3)
    torch.manual_seed(context.seed)
    fit(
        heads,
        model,
        text[:-held],
        states[:-held],
        seconds=seconds,
        seed=context.seed,
        progress=lambda s: context.progress("training the heads", s),
    )
    accuracy = rank_accuracy(heads, model, text[-held:], states[-held:])
    # Test prompts are of the part of the text that the heads have not seen.
    begin = int(len(tokens) * 0.85)
    tests = [torch.tensor([tokens[begin + 700 * i : begin + 700 * i + 64]]) for i in range(4 if enough else 1)]
    new = 96 if enough else 12
    expected = [model.generate(t, max_new_tokens=new, min_new_tokens=new, do_sample=False) for t in tests]
    plain = sum(model.measure(64, new, 1, 1, ids=t).phases["decode"].low for t in tests) / (len(tests) * new)
    sizes = (4, 8, 16, 31) if enough else (4,)
    trees = {n: Tree.best(accuracy, n - 1) for n in sizes}
    rates, steps, same = {}, {}, True
    for n, tree in trees.items():
        runs = [decode(model, heads, tree, t, new) for t in tests]
        same &= all(torch.equal(r.ids, e) for r, e in zip(runs, expected, strict=True))
        again = [decode(model, heads, tree, t, new) for t in tests]
        fastest = sum(min(a.seconds, b.seconds) for a, b in zip(runs, again, strict=True))
        rates[n] = sum(r.made for r in runs) / fastest * plain
        steps[n] = sum(r.made for r in runs) / sum(r.steps for r in runs)
    cache, step = model.session(1, 256)
    cache.lengths[:] = [64]
    rows = {n: ([1] * n, [0] * n, list(range(64, 64 + n))) for n in sizes}
    cost = {n: least_seconds(functools.partial(step, *rows[n]), 8) for n in sizes}
    cache.clear()
    chosen = best_size([(n, t.expected(accuracy)) for n, t in trees.items()], lambda n: cost[n])
    best = max(rates.values())
    value = (
        f"text {'identical to greedy' if same else 'DIFFERENT FROM GREEDY'}; heads right {accuracy[0][0]:.0%}, {accuracy[1][0]:.0%},"
        f" {accuracy[2][0]:.0%}; " + ", ".join(f"{n} rows: {steps[n]:.2f} tokens a step, {rates[n]:.2f}x" for n in sizes)
        + f"; {chosen} rows chosen from measured step times"
    )  # fmt: skip
    holds = same and max(steps.values()) >= 1.3 and rates[chosen] >= 0.9 * best and best >= 2.2
    return judged(context, value, holds, same and max(steps.values()) >= 1.3 and best > 1, needs=_NEEDS)


@paper.check("L2")
def _snapkv(context: Context) -> Seen:
    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.policies import KeepEnds, RandomKeep, SnapKV
    from hasten.runtime.quality import needle

    model, tokenizer, tokens = _model()
    lengths = (1024, 2048, 4096) if context.budget >= 1500 else (1024, 2048) if context.budget >= _NEEDS else (512,)
    capacity = 256
    found: dict[str, float] = {}
    arms = {
        "everything": None,
        "SnapKV": SnapKV(capacity, window=8, kernel=7, pooling="max"),
        "first and last": KeepEnds(capacity),
        "random": RandomKeep(capacity, window=8),
    }
    for name, policy in arms.items():
        other = LanguageModel(model.network, tokenizer, cache=CacheSpec(policy=policy))
        hits = [hit for n in lengths for hit in needle(other, tokenizer, tokens, length=n).values()]
        found[name] = sum(hits) / len(hits)
    long = 4096 if context.budget >= _NEEDS else 512
    import torch

    ids = torch.tensor([tokens[:long]])
    rates, sizes = [], []
    for policy in (None, SnapKV(capacity)):
        other = LanguageModel(model.network, cache=CacheSpec("bf16", policy=policy))
        rates.append(32 / other.measure(long, 32, 1, 1, ids=ids).phases["decode"].low)
        cache = other.new_cache(1, long + 34)
        other.prefill(ids, cache)
        sizes.append(cache.nbytes)
    value = (
        "needles found with 256 tokens kept: " + ", ".join(f"{n} {v:.0%}" for n, v in found.items())
        + f"; decode at {long}: {rates[1] / rates[0]:.2f}x, cache {sizes[0] / sizes[1]:.1f}x smaller"
    )  # fmt: skip
    ours = found["SnapKV"]
    holds = (
        ours >= max(found["first and last"], found["random"])
        and ours >= 0.9 * found["everything"]
        and rates[1] > 1.5 * rates[0]
    )
    return judged(
        context,
        value,
        holds,
        ours >= max(found["first and last"], found["random"]) and rates[1] > rates[0],
        needs=_NEEDS,
    )


@paper.check("L5")
def _circuits(context: Context) -> Seen:
    from hasten.data.hls_bugs import DIRECTIVE, build, check, designs, evaluate, mutants

    every = [m for d in designs() for m in mutants(d)]
    cases = build(designs() if context.budget >= 30 else designs()[:1])
    classes = {c.bug for c in cases if c.bug}
    directive = [m for m in every if m.bug in DIRECTIVE]
    recall = sum(m.bug in check(m.source) for m in directive) / len(directive)
    rules = evaluate(lambda source: bool(check(source)), cases)
    model, tokenizer, _ = _model()

    import torch

    def suspicion(source: str) -> float:
        text = f"Review this C++ function for hardware synthesis.\n{source}\nDoes it contain a bug? Answer yes or no:"
        row = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        logits = model.prefill(row, model.new_cache(1, row.shape[1]))[0]
        yes, no = (tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (" yes", " no"))
        return float(logits[yes] - logits[no])

    # Its threshold is the median of all scores: a small model says the same word to nearly everything.
    scores = {c.source: suspicion(c.source) for c in cases}
    middle = sorted(scores.values())[len(scores) // 2]
    asked = evaluate(lambda source: scores[source] > middle, cases)
    value = (
        f"{len(cases)} functions of {len(designs())} designs, {len(classes)} of 19 bug classes, each shown by compiling and running"
        f" or by rule; rules find {recall:.0%} of directive bugs and {rules.false_alarms:.0%} false alarms; SmolLM2-135M finds"
        f" {asked.recall:.0%} of all bugs with {asked.false_alarms:.0%} false alarms"
    )
    return judged(
        context, value, len(classes) == 19 and recall >= 0.9 and rules.false_alarms == 0 and len(cases) > 1000,
        len(classes) == 19 and recall >= 0.9 and rules.false_alarms == 0, needs=30,
    )  # fmt: skip
