"""Checks of SambaNova SN40L: Scaling the AI Memory Wall with Dataflow and Composition of Experts."""

from __future__ import annotations

from hasten.cost.chips.decoder_sections import LAYERED_MODELS, layer_costs
from hasten.cost.chips.monarch import monarch_chain
from hasten.cost.chips.section_run import FusionSeen, fusion_cases, fusion_seen, this_processor
from hasten.cost.chips.sections import (
    LAUNCHERS,
    SectionPlan,
    SectionsCost,
    one_section,
    plan_sections,
    unfused_sections,
)
from hasten.cost.serving import model_switching as switching
from hasten.data.text import default_text, headers
from hasten.hardware.chips.streaming_chip import streaming_chip
from hasten.hardware.machine import caches
from hasten.papers.experiment import Experiment, Seen, check, shared
from hasten.papers.language_models import fresh_model
from hasten.processes import one_thread
from hasten.serving.expert_trial import ExpertTrial, tried
from hasten.tasks.text import Text
from hasten.train.text_experts import composition_seen
from hasten.workload.streaming import work_graph

_RATE = 0.25e9  # B/s at which experts come in where they are measured, stated with each figure


@shared(weight=3)
def _layers(experiment: Experiment) -> dict[str, dict[str, SectionsCost]]:
    """A decoder's layer on eight sockets -> how it is cut and launched -> cost."""
    chip = streaming_chip("sn40l").node(8)
    models = experiment.at(quick=LAYERED_MODELS[:1], normal=LAYERED_MODELS)
    return {f"{model} {phase}": costs for model in models for phase, costs in layer_costs(model, chip).items()}


@check("S1", weight=1)
def _fused(experiment: Experiment) -> Seen:
    """All layers of three models, prompts of 4,096 tokens and a token behind them; both launched alike, by the chip's own
    schedule; links between sockets cost nothing. Beside it what a host launches, in an estimated 12 us each."""
    table = experiment.once(_layers)
    gains, hosts = (
        {n: c[f"unfused {w}"].latency / c[f"fused {w}"].latency for n, c in table.items()} for w in LAUNCHERS[::-1]
    )
    calls = [c["unfused software"].launches / c["fused software"].launches for c in table.values()]
    value = ", ".join(f"{n} {g:.1f}x (by a host {hosts[n]:.1f}x)" for n, g in gains.items())
    value += f"; {min(calls):.0f} to {max(calls):.0f} tasks a launch (published more than 20, calls 11x fewer)"
    return experiment.judge(value, all(2 <= g <= 13 for g in gains.values()), all(g > 1 for g in gains.values()))


@check("S1.run", weight=100, needs=60)
def _tiled(experiment: Experiment) -> Seen:
    """Here, one thread, fp32: tasks one after the other in torch, and tiles for which an eighth of the last cache has
    room, two of each tensor."""
    found: dict[str, FusionSeen] = {}
    with one_thread():
        chip = this_processor(caches()[-1][1] // 8)
        for name, (cascade, rank) in fusion_cases(small=experiment.quick).items():
            experiment.tell(name, len(found) / 3)
            found[name] = fusion_seen(cascade, rank, chip)
    value = ", ".join(
        f"{n}: {s.speedup:.2f}x (predicted {s.predicted:.2f}x, {s.intensity:.1f}x the FLOPs a byte, bound by {s.bound}, "
        f"tiles of {s.tile})"
        for n, s in found.items()
    )
    order = sorted(found, key=lambda n: found[n].speedup) == sorted(found, key=lambda n: found[n].intensity)
    exact = all(s.error < 1e-5 for s in found.values())
    told = all(s.speedup >= 1.15 or s.bound == "compute" for s in found.values())
    faster = found["chain"].speedup >= 1.15
    return experiment.judge(value, order and exact and told and faster, exact and faster)


@check("S2", weight=1)
def _intensity(experiment: Experiment) -> Seen:
    """From the graph; the paper's shapes are in a figure alone, and these are those that its numbers of bytes leave."""
    chip = streaming_chip("sn40l")
    graph = work_graph(monarch_chain(), grain="kernel")
    part = SectionPlan(
        graph, chip, (one_section(graph, chip, graph.order[:3]), one_section(graph, chip, graph.order[3:]))
    )
    plans = (unfused_sections(graph, chip), part, plan_sections(graph, chip))
    found = [p.cost().intensity for p in plans]
    value = " / ".join(f"{f:.1f}" for f in found) + " FLOPs a byte, published 39.5 / 102.6 / 410.4"
    near = [abs(f / p - 1) <= 0.1 for f, p in zip(found, (39.5, 102.6, 410.4), strict=True)]
    return experiment.judge(value, all(near) and len(plans[2].sections) == 1, sorted(found) == found)


@check("S3", weight=1)
def _switching(experiment: Experiment) -> Seen:
    """13.48 GB over what fills each machine's fast memory: eight sockets at 1 TB/s, PCIe one way."""
    seconds = [m.switch(switching.LLAMA_BYTES) for m in switching.published_machines()]
    ratios = [s / seconds[0] for s in seconds[1:]]
    value = f"{', '.join(f'{1e3 * s:.1f} ms' for s in seconds)}: {ratios[0]:.2f}x and {ratios[1]:.2f}x shorter, published 31x and 15x"
    return experiment.judge(value, abs(ratios[0] / 31 - 1) <= 0.05 and abs(ratios[1] / 15 - 1) <= 0.05, ratios[1] > 1)


@check("S4", weight=1)
def _footprint(experiment: Experiment) -> Seen:
    """Machines that hold 850 experts in fast memory, beside a router and keys and values of 8 x 4,096 tokens, or alone."""
    _, a100, _ = switching.published_machines()
    found = [switching.machines_needed(a100, 850, switching.LLAMA_BYTES, r) for r in (switching.RESERVED, 0.0)]
    value = f"{found[0]} with {a100.held(switching.LLAMA_BYTES, switching.RESERVED)} experts each; without reserve {found[1]} with {a100.held(switching.LLAMA_BYTES)}; published 19"
    return experiment.judge(value, found == [19, 19], min(found) > 1)


@check("S5", weight=1)
def _end_to_end(experiment: Experiment) -> Seen:
    """Every prompt another expert, 20 tokens of 3 ms on all machines alike: the gain is switching. Beside it with a
    router, memory for as many experts as fit, and prompts that go to any of the 150."""
    alike = [e for (e,) in switching.zipf_batches(150, 600, 1, experiment.seed, skew=0.0)]
    cold = [switching.answering_seconds(m, range(150), switching.LLAMA_BYTES) for m in switching.published_machines()]
    warm = [
        switching.answering_seconds(m, alike, switching.LLAMA_BYTES, router=0.003, reserved=switching.RESERVED)
        for m in switching.published_machines()
    ]
    ratios = [s / cold[0] for s in cold[1:]]
    value = f"{ratios[0]:.2f}x and {ratios[1]:.2f}x, published 6.6x and 3.7x; with a router and what memory holds "
    value += f"{warm[1] / warm[0]:.2f}x and {warm[2] / warm[0]:.2f}x"
    return experiment.judge(value, abs(ratios[0] / 6.6 - 1) <= 0.05 and abs(ratios[1] / 3.7 - 1) <= 0.05, ratios[1] > 1)


@check("S6", weight=1)
def _capacity(experiment: Experiment) -> Seen:
    """Experts of Llama-2-7B's size in the store of eight sockets."""
    held = int(switching.published_machines()[0].store_bytes // switching.LLAMA_BYTES)
    value = f"{held} experts, {held * switching.LLAMA_PARAMETERS / 1e12:.1f} trillion parameters; 150 have {150 * switching.LLAMA_PARAMETERS / 1e12:.2f}"
    return experiment.judge(
        value, held >= 850 and 150 * switching.LLAMA_PARAMETERS > 1e12, held * switching.LLAMA_PARAMETERS > 1e12
    )


@check("S7", weight=1)
def _decoding(experiment: Experiment) -> Seen:
    """A token by the model of sections: what a launch takes is estimated, and the memory itself loses nothing, so that this
    bounds the published 85 % from above; how busy units are is not modelled."""
    table = {n: c for n, c in experiment.once(_layers).items() if n.endswith("decode")}
    bandwidth = streaming_chip("sn40l").node(8).bandwidth
    ways = ("unfused software", "fused software", "fused hardware")
    shares = {n: [c[w].share_of(bandwidth) for w in ways] for n, c in table.items()}
    one = all(c["fused software"].launches in (32, 80) for c in table.values())
    gains = [c["fused software"].latency / c["fused hardware"].latency for c in table.values()]
    value = "; ".join(
        f"{n}: " + ", ".join(f"{s:.0%} {w}" for s, w in zip(own, ways, strict=True)) for n, own in shares.items()
    )
    value += f" of the bandwidth; {'one launch' if one else 'several launches'} a layer"
    value += f", {min(gains):.2f}x to {max(gains):.2f}x by the chip's own schedule (published 1.4x to 8x)"
    least, most = (f(s[2] for s in shares.values()) for f in (min, max))
    return experiment.judge(value, one and least >= 0.75 and most <= 0.95, one and least >= 0.75)


@shared(weight=200)
def _served(experiment: Experiment) -> ExpertTrial:
    """12 experts, SmolLM2-135M in bf16 with a change of rank 8 to each layer's weights, memory for 4 of them; 40 prompts
    (120 in a long run) in batches of 8, topics by Zipf's law, routed by their tokens; on one thread, another reads."""
    model = fresh_model(experiment.quick)
    model.network.bfloat16()
    ids = model.tokenizer(default_text(), add_special_tokens=False, verbose=False)["input_ids"]
    count, capacity, prompts, new = experiment.at(quick=(4, 2, 8, 2), normal=(12, 4, 40, 20), long=(12, 4, 120, 20))
    topics = switching.zipf_batches(count, prompts, 8, experiment.seed)
    with one_thread():
        return tried(
            model, ids, topics, count, capacity, new, bandwidth=_RATE, seed=experiment.seed, progress=experiment.tell
        )


@check("S3.run", weight=1, needs=200)
def _switched(experiment: Experiment) -> Seen:
    """No cache, least recently used, that with prompts grouped by expert, that with the next one read ahead, all resident."""
    trial = experiment.once(_served)
    times, seen = trial.times, trial.seen
    ratio = seen["grouped"].counts.seconds / seen["no cache"].counts.seconds
    value = f"{trial.about}: " + ", ".join(
        f"{n} {s.counts.seconds:.1f} s (model {s.error:+.0%}, {s.counts.hits} hits, {s.counts.misses} loads)"
        for n, s in seen.items()
    )
    value += f"; grouped {ratio:.2f}x of no cache; not held to a rate a load takes {times.unheld:.3f} s, held {times.load:.3f} s"
    exact = all(s.same_hits for s in seen.values()) and len({s.answers for s in seen.values()}) == 1
    near = all(abs(s.error) <= 0.15 for s in seen.values())
    return experiment.judge(value, ratio <= 0.6 and exact and near, ratio < 1 and exact)


@check("S8", weight=1, needs=1200)
def _composed(experiment: Experiment) -> Seen:
    """Six small character models, a corpus each, with a learned router, and one of their size trained as long as all."""
    experiment.require(1200)
    length = experiment.at(quick=16, normal=64)
    most = experiment.at(quick=3000, normal=150_000)
    texts = {n: n for n in ("sources", "prose", "documentation", "brown", "moby-dick")} | {"headers": headers(most)}
    corpora = {name: Text(text, length, characters=most) for name, text in texts.items()}
    seen = composition_seen(
        corpora, experiment.at(quick=2, normal=800), experiment.seed, progress=experiment.tell,
        **experiment.at(quick={"width": 16, "layers": 1, "windows": 4}, normal={}),
    )  # fmt: skip
    value = (
        f"loss {seen.composition:.3f} of the composition, {seen.one:.3f} of one model ({seen.gain:+.1%}); "
        f"{seen.own:.3f} if each went to its own expert, {seen.routed:.0%} do"
    )
    return experiment.judge(value, seen.gain >= 0.03, seen.gain > 0)
