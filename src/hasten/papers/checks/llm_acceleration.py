"""Checks of New Solutions on LLM Acceleration, Optimization, and Application."""

from __future__ import annotations

import torch

from hasten.hardware import load_device
from hasten.models.language.llama import llama_7b
from hasten.models.loading.tiny import tiny_model
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.papers.language_models import character_llama, real_model, real_tokens
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.bug_detection import suspicion
from hasten.runtime.decoding.early_exit import trade_off
from hasten.runtime.decoding.medusa2 import JointRecipe, compare
from hasten.runtime.decoding.medusa_training import trained_heads, try_sizes, written
from hasten.runtime.policies import KeepEnds, RandomKeep, SnapKVPolicy
from hasten.runtime.quality import needle, perplexity
from hasten.search.codesign.hls_comparison import published_error
from hasten.spaces.autodistill import LONG, QUICK, Classroom, judge
from hasten.spaces.hls import NETWORKS, compared
from hasten.tasks.hls import bugs
from hasten.tasks.hls.varied import varied
from hasten.tuning.accelerate import estimated_step

TEXT = 250_000  # characters


@check("L1", weight=200)
def medusa(experiment: Experiment) -> Seen:
    """Heads trained on the model's own text, and trees of their drafts decoded."""
    experiment.require(60)
    model, tokens = experiment.once(real_model, "packed"), torch.tensor(experiment.once(real_tokens, TEXT))
    prompts, made = experiment.at(quick=(4, 8), normal=(96, 96), long=(256, 96))
    # Test prompts are of the part of the text that the heads have not seen.
    text = written(model, tokens[: len(tokens) * 8 // 10], prompts, 32, made)
    heads, accuracy = trained_heads(
        model, text, 3, seconds=experiment.at(quick=0.2, normal=100.0, long=900.0), seed=experiment.seed,
        progress=lambda share: experiment.tell("training the heads", share),
    )  # fmt: skip
    begin, new = int(len(tokens) * 0.85), experiment.at(quick=8, normal=64)
    tests = [tokens[None, begin + 700 * i : begin + 700 * i + 64] for i in range(experiment.at(quick=1, normal=2))]
    sizes = experiment.at(quick=(4,), normal=(4, 8, 16, 31, 64))
    tried = try_sizes(model, heads, accuracy, tests, new, sizes)
    rates, steps = tried.rates, {n: speed.tokens_a_step for n, speed in tried.speeds.items()}
    large = experiment.at(quick=lambda: tiny_model(layers=1).network, normal=lambda: llama_7b(2048))()
    large, gpu = LanguageModel(large, cache=CacheSpec("bf16")), load_device("a100")
    workload = large.workload(64, 2)
    on_gpu = {n: estimated_step(workload, gpu, n) for n in (1, *sizes)}
    modelled = {n: steps[n] * on_gpu[1] / on_gpu[n] for n in sizes}
    best, most = max(rates.values()), max(modelled, key=lambda n: modelled[n])
    value = (
        f"text {'identical to greedy' if tried.exact else 'DIFFERENT FROM GREEDY'}; heads right {accuracy[0][0]:.0%}, {accuracy[1][0]:.0%},"
        f" {accuracy[2][0]:.0%}; " + ", ".join(f"{n} rows: {steps[n]:.2f} tokens a step, {rates[n]:.2f}x" for n in sizes)
        + f"; {tried.chosen} rows chosen from measured step times; with these heads' tokens a step a 7B on an A100 is estimated"
        f" {modelled[most]:.2f}x as fast ({most} rows); {experiment.once(joint)}"
    )  # fmt: skip
    # The drafts are right or wrong wherever they run: what a step of several rows costs is this machine's.
    kept = tried.exact and max(steps.values()) >= 1.3 and rates[tried.chosen] >= 0.9 * best
    expected = model.generate(tests[0], max_new_tokens=new, eos_token_id=None, do_sample=False)
    left = trade_off(model, tests[0], expected, experiment.at(quick=4, normal=48), (0.95, 0.8, 0.5))
    detail = ", ".join(f"{a:.0%} of layers and {b:.0%} of greedy tokens at {t:g}" for t, (a, b) in left.items())
    faster = max(best, modelled[most]) > 1
    return experiment.judge(value, kept and best >= 2.2, kept and faster, f"early exit: {detail}")


@shared(weight=40)
def joint(experiment: Experiment) -> str:
    """Medusa-1 and Medusa-2 in as many steps, on a small Llama that reads characters."""
    model, text = experiment.once(character_llama)
    recipes = {"Medusa-1": JointRecipe(alone=1.0), "Medusa-2": JointRecipe(rate=5e-4, head_rate=2e-3)}
    rows, steps = experiment.at(quick=(4, 4), normal=(16, 300), long=(16, 1500))
    found = compare(model, text, recipes, steps=steps, rows=rows, seed=experiment.seed)
    return "on a small Llama " + ", ".join(
        f"{name} {f.tokens_a_step:.2f} tokens a step ({f.nats - f.nats_before:+.3f} nats a character"
        f"{'' if f.exact else ', DIFFERENT FROM ITS GREEDY TEXT'})"
        for name, f in found.items()
    )


@check("L2", weight=90)
def snapkv(experiment: Experiment) -> Seen:
    """A prompt's cache cut to 256 tokens by SnapKV, beside its controls."""
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


@check("L3", weight=150)
def autodistill(experiment: Experiment) -> Seen:
    """Students of a teacher of real text, searched for one device, beside a search by chance and one made by hand."""
    experiment.require(200)
    room = experiment.at(quick=QUICK, normal=Classroom(seed=experiment.seed), long=LONG)
    flash, trials, start = experiment.at(quick=(1, 3, 2), normal=(30, 16, 4), long=(120, 40, 8))
    seen = judge(
        room, "pi5", flash, trials, start, experiment.seeds(2, long=4),
        lambda function, arms: succeeded(experiment.arms(function, arms), needed=arms)[0],
    )  # fmt: skip
    found, made, rank, volumes = seen.chosen, seen.hand_made, seen.ranking, seen.volumes
    value = (
        f"teacher right {seen.teacher.accuracy:.1%}; {flash} steps rank {seen.students} students as {10 * flash} do with"
        f" {rank['flash']:.2f} (as many without the teacher {rank['untaught']:.2f}, parameters {rank['parameters']:.2f});"
        f" volume under the front after {trials} trials {volumes['gp']:.3f} by Bayesian search, {volumes['random']:.3f} by"
        f" chance; the student chosen for a Raspberry Pi 5 is right {found.accuracy:.1%} ({found.nats:.2f} nats), MobileBERT's"
        f" proportions {made.accuracy:.1%} ({made.nats:.2f} nats), and estimated {seen.faster:.2f}x as fast"
    )
    # Accuracies are known to a percent, nats to a hundredth.
    better = found.nats <= made.nats + 0.02 and seen.faster >= 1
    holds = rank["flash"] >= 0.6 and volumes["gp"] >= volumes["random"] and better
    return experiment.judge(value, holds, rank["flash"] > 0 and better, str(seen.student))


@check("L4", weight=40)
def compiler(experiment: Experiment) -> Seen:
    """Networks as circuits by HIDA's rule, beside pipelines alone and equal copies; run as C++, their cycles counted."""
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
