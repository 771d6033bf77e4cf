"""Checks of New Solutions on LLM Acceleration, Optimization, and Application."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check
from hasten.papers.language_models import real_model, real_tokens

if TYPE_CHECKING:
    from hasten.runtime import LanguageModel

TEXT = 250_000  # characters


@check("L1", weight=200)
def medusa(experiment: Experiment) -> Seen:
    """Heads trained on the model's own text, and trees of their drafts decoded."""
    import torch

    from hasten.cost.measuring import alternating
    from hasten.models.language.llama import llama_7b
    from hasten.models.loading.tiny import tiny_model
    from hasten.runtime.decoding.medusa import MedusaHeads, Tree, best_size, decode, fit, own_text, rank_accuracy

    experiment.require(60)
    model, tokens = experiment.once(real_model, "packed"), experiment.once(real_tokens, TEXT)
    prompts, made = experiment.at(quick=(4, 8), normal=(96, 96), long=(256, 96))
    length = 32
    starts = torch.linspace(0, len(tokens) * 0.8 - length, prompts).long().tolist()
    ids = torch.tensor([tokens[s : s + length] for s in starts])
    parts = [own_text(model, part, made) for part in ids.split(16)]
    text, states = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]).float()
    held = max(2, prompts // 12)
    heads = MedusaHeads(int(model.config.hidden_size), 3)
    torch.manual_seed(experiment.seed)
    fit(
        heads,
        model,
        text[:-held],
        states[:-held],
        seconds=experiment.at(quick=0.2, normal=100.0, long=900.0),
        seed=experiment.seed,
        progress=lambda share: experiment.tell("training the heads", share),
    )
    accuracy = rank_accuracy(heads, model, text[-held:], states[-held:])
    # Test prompts are of the part of the text that the heads have not seen.
    begin = int(len(tokens) * 0.85)
    tests = [
        torch.tensor([tokens[begin + 700 * i : begin + 700 * i + 64]]) for i in range(experiment.at(quick=1, normal=2))
    ]
    new = experiment.at(quick=8, normal=64)
    expected = [model.generate(t, max_new_tokens=new, min_new_tokens=new, do_sample=False) for t in tests]
    plain = sum(model.measure(64, new, 1, 1, ids=t).phases["decode"].low for t in tests) / (len(tests) * new)
    sizes = experiment.at(quick=(4,), normal=(4, 8, 16, 31))
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
    if step is None:
        raise HastenError(f"no step of several rows can be timed: {model.why_not_compiled}")
    cache.lengths[:] = [64]
    rows = {n: ([1] * n, [0] * n, list(range(64, 64 + n))) for n in sizes}
    times = alternating({str(n): functools.partial(step, *rows[n]) for n in sizes}, 8)
    cost = {n: min(times[str(n)]) for n in sizes}
    cache.clear()
    chosen = best_size([(n, t.expected(accuracy)) for n, t in trees.items()], lambda n: cost[n])
    best = max(rates.values())
    large = experiment.at(quick=lambda: tiny_model(layers=1).network, normal=lambda: llama_7b(2048))()
    single = gpu_step(large, 1)
    modelled = {n: steps[n] * single / gpu_step(large, n) for n in sizes}
    most = max(modelled, key=lambda n: modelled[n])
    value = (
        f"text {'identical to greedy' if same else 'DIFFERENT FROM GREEDY'}; heads right {accuracy[0][0]:.0%}, {accuracy[1][0]:.0%},"
        f" {accuracy[2][0]:.0%}; " + ", ".join(f"{n} rows: {steps[n]:.2f} tokens a step, {rates[n]:.2f}x" for n in sizes)
        + f"; {chosen} rows chosen from measured step times; with these heads' tokens a step a 7B on an A100 is estimated"
        f" {modelled[most]:.2f}x as fast ({most} rows)"
    )  # fmt: skip
    # The drafts are right or wrong wherever they run: what a step of several rows costs is this machine's.
    kept = same and max(steps.values()) >= 1.3 and rates[chosen] >= 0.9 * best
    detail = early_exit(model, tests[0], expected[0], experiment.at(quick=4, normal=48))
    return experiment.judge(value, kept and best >= 2.2, kept and max(best, modelled[most]) > 1, detail)


def gpu_step(network: Any, rows: int) -> float:
    """Seconds of a step of a network with a bf16 cache on an A100, estimated, where ``rows`` tokens go through."""
    from hasten.cost import estimate
    from hasten.hardware import load_device
    from hasten.runtime import CacheSpec, LanguageModel

    workload = LanguageModel(network, cache=CacheSpec("bf16")).workload(64, 2, rows)
    return estimate(workload, load_device("a100"), schedule="fused").phase("decode").latency


def early_exit(model: LanguageModel, prompt: Any, expected: Any, new: int) -> str:
    """What the survey's third way of decoding faster gives on the same model, which was not trained for it."""
    from hasten.runtime.decoding.early_exit import generate
    from hasten.runtime.quality import agreement

    parts = []
    for threshold in (0.95, 0.8, 0.5):
        found = generate(model, prompt, new, threshold=threshold)
        kept = agreement(found.ids[0, prompt.shape[1] :].tolist(), expected[0, prompt.shape[1] :][:new].tolist())
        share = sum(found.layers) / len(found.layers) / len(model.layers)
        parts.append(f"{share:.0%} of layers run and {kept:.0%} of greedy tokens kept at {threshold:g}")
    return "early exit: " + ", ".join(parts)


@check("L2", weight=90)
def snapkv(experiment: Experiment) -> Seen:
    """A prompt's cache cut to 256 tokens by SnapKV, beside its controls."""
    import torch

    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.policies import KeepEnds, RandomKeep, SnapKVPolicy
    from hasten.runtime.quality import needle, perplexity

    experiment.require(60)
    model, tokens = experiment.once(real_model, "packed"), experiment.once(real_tokens, TEXT)
    lengths = experiment.at(quick=(512,), normal=(512, 1024), long=(1024, 2048, 4096))
    scored, segments = experiment.at(quick=(8, 1), normal=(128, 2))
    capacity = 256
    found: dict[str, float] = {}
    perplexities: dict[str, float] = {}
    arms = {
        "everything": None,
        "SnapKV": SnapKVPolicy(capacity, window=8, kernel=7, pooling="max"),
        "first and last": KeepEnds(capacity),
        "random": RandomKeep(capacity, window=8),
    }
    for name, policy in arms.items():
        other = LanguageModel(model.network, model.tokenizer, cache=CacheSpec(policy=policy))
        hits = [hit for n in lengths for hit in needle(other, model.tokenizer, tokens, length=n).values()]
        found[name] = sum(hits) / len(hits)
        perplexities[name] = perplexity(other, tokens, context=lengths[0], scored=scored, segments=segments).value
    long, new = experiment.at(quick=(512, 4), normal=(4096, 32))
    ids = torch.tensor([tokens[:long]])
    rates, sizes = [], []
    for policy in (None, SnapKVPolicy(capacity, window=32, kernel=5, pooling="mean")):
        other = LanguageModel(model.network, cache=CacheSpec("bf16", policy=policy))
        rates.append(new / other.measure(long, new, 1, 1, ids=ids).phases["decode"].low)
        cache = other.new_cache(1, long + 34)
        other.prefill(ids, cache)
        sizes.append(cache.nbytes)
    value = (
        "needles found with 256 tokens kept: " + ", ".join(f"{n} {v:.0%}" for n, v in found.items())
        + "; perplexity behind a prompt: " + ", ".join(f"{n} {v:.2f}" for n, v in perplexities.items())
        + f"; decode at {long}: {rates[1] / rates[0]:.2f}x, cache {sizes[0] / sizes[1]:.1f}x smaller"
    )  # fmt: skip
    ours, controls = found["SnapKV"], ("first and last", "random")
    better = ours >= max(found[c] for c in controls)
    holds = (
        better
        and ours >= 0.9 * found["everything"]
        and perplexities["SnapKV"] <= min(perplexities[c] for c in controls)
        and 0.9 * perplexities["SnapKV"] <= perplexities["everything"]
        and rates[1] > 1.5 * rates[0]
    )
    return experiment.judge(value, holds, better and rates[1] > rates[0])


@check("L4", weight=40)
def compiler(experiment: Experiment) -> Seen:
    """Networks as circuits by HIDA's rule, beside pipelines alone and equal copies; run as C++, their cycles counted."""
    from hasten.search.codesign.hls_comparison import published_error
    from hasten.spaces.hls import NETWORKS, compared

    cases = [(n, b) for n in NETWORKS for b in ("zu3eg", "u280")][: experiment.at(quick=1, normal=4)]
    seen = [compared(*c, most=experiment.at(quick=64, normal=1 << 14), seed=experiment.seed) for c in cases]
    error = published_error()
    value = "; ".join(f"{n} on {b}: {s}" for (n, b), s in zip(cases, seen, strict=True)) + f"; {error}"
    right = error.right and all(s.right for s in seen)
    alone, equal = (min(s.gain(arm) for s in seen) for arm in ("pipelined", "equal"))
    return experiment.judge(value, right and alone > 3 and equal > 1, right and alone > 3)


@check("L5", weight=70)
def circuits(experiment: Experiment) -> Seen:
    """Bugs planted in designs, found by rules and by what the language model thinks of the code."""
    from hasten.runtime.bug_detection import suspicion
    from hasten.tasks.hls import bugs
    from hasten.tasks.hls.varied import varied

    experiment.require(250)
    clean = bugs.designs(experiment.at(quick=1, normal=3))
    cases = bugs.build(experiment.at(quick=clean[:1], normal=clean))
    of = {bug: {c.name for c in cases if c.bug == bug} for bug in {**bugs.FUNCTIONAL, **bugs.DIRECTIVE}}
    least = min(map(len, of.values()))
    by_rule = bugs.classify(bugs.check, [c for c in cases if c.bug not in bugs.FUNCTIONAL])
    # Designs that other code made, in the layouts and notations of many hands.
    others = varied(experiment.at(quick=1, normal=8, long=40), seed=experiment.seed)
    foreign = bugs.classify(bugs.check, others)
    hardest = min(foreign.recall, key=lambda bug: foreign.recall[bug])
    model = experiment.once(real_model, "packed")
    # A few of each class, and of the clean ones as many as there are designs: reading takes a model its time.
    some = [c for bug in of for c in [c for c in cases if c.bug == bug][:2]] + [c for c in cases if not c.bug][::3]
    asked = bugs.rank(suspicion(model, model.tokenizer), some)
    best = max(asked.by_class, key=lambda bug: asked.by_class[bug])
    value = (
        f"{len(cases)} functions of {len({c.name for c in cases})} designs, {sum(map(bool, of.values()))} of 19 bug classes in"
        f" at least {least} designs each, compiled and run; rules name {by_rule.found:.0%} of directive bugs with"
        f" {by_rule.false_alarms:.0%} false alarms, and of {len(others)} circuits in other styles {foreign.found:.0%} with"
        f" {foreign.false_alarms:.0%} (least: {hardest} {foreign.recall[hardest]:.0%}; precision at least"
        f" {min(foreign.precision.values()):.0%}); SmolLM2-135M tells bugs from clean ones with {asked.area:.2f} of the area"
        f" under its curve (0.5: a coin), best for {best} ({asked.by_class[best]:.2f})"
    )
    kept = least >= 5 and all(f.found >= 0.9 and f.false_alarms == 0 for f in (by_rule, foreign))
    return experiment.judge(value, kept and len(cases) > 1000, kept)
