"""A language model taken to a device by the methods of one survey (arXiv 2406.10903), each a stage of one call.

    fast = accelerate(model, tokens, load_device("a100"))
    print(fast.report())
    fast.generate(ids, 64)

A stage gets the model as the stages before left it, changes it, and says what came of it. One that does not suit the
model says why; one that costs more quality than allowed, or gives no speed, is taken back. Stages of one's own are
subclasses of `AccelerationStage`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.cost import estimate
from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.hardware.chips.fpga_board import fpga_board, fpga_boards
from hasten.hardware.hls.emission import emit
from hasten.hardware.hls.running import run_design
from hasten.methods.token_selection import SnapKV
from hasten.models.loading.network import load_network
from hasten.runtime.decoding import medusa, medusa2
from hasten.runtime.decoding.medusa import MedusaHeads, Tree
from hasten.runtime.decoding.medusa2 import fit_jointly
from hasten.runtime.decoding.medusa_training import rank_accuracy, states_of, trained_heads, written
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.quality import perplexity
from hasten.runtime.tracing import with_rows
from hasten.search.codesign.hls import explore, naive
from hasten.search.networks.autodistill import AutoDistill, quality
from hasten.search.networks.students import DecoderSpace, StudentDecoder
from hasten.tasks.hls.rules import findings
from hasten.tasks.task import Batch
from hasten.tasks.text import windows
from hasten.train.distilling import ObservedDecoder, lessons
from hasten.workload.einsum import Workload
from hasten.workload.loops import loop_program

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Goal:
    """What a model is made fast for.

    Args:
        prompt, new_tokens: of one text at a time.
        floor: perplexity may be worse than before by this share, for stages that change what is written.
        seed: of everything random.

    Raises:
        HastenError: a size below 1 or a negative floor.
    """

    prompt: int = 256
    new_tokens: int = 64
    floor: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.new_tokens < 1 or self.floor < 0:
            raise HastenError("a goal has a prompt and new tokens of at least 1, and no negative floor")


@dataclass
class Acceleration:
    """A model on its way through the stages.

    Args:
        model: as it is now.
        tokens: (n,) text to learn from and to judge by: the last fifth is for judging alone.
        device: what it is for; None: this machine, where times are measured.
        goal: what it is made fast for.
        heads, tree, tokens_a_step: how it decodes, where several tokens a step are tried; tokens measured.
    """

    model: LanguageModel
    tokens: Tensor
    device: Device | None = None
    goal: Goal = field(default_factory=Goal)
    heads: MedusaHeads | None = None
    tree: Tree | None = None
    tokens_a_step: float = 1.0

    @property
    def training(self) -> Tensor:
        """The text to learn from."""
        return self.tokens[: len(self.tokens) * 4 // 5]

    @property
    def held(self) -> Tensor:
        """The text to judge by."""
        return self.tokens[len(self.tokens) * 4 // 5 :]

    def prompt(self) -> Tensor:
        """(1, prompt) tokens of the held text."""
        return self.held[None, : self.goal.prompt]

    def perplexity(self) -> float:
        """On the held text, behind prompts of the goal's length."""
        context = min(self.goal.prompt, len(self.held) // 2)
        scored = min(128, len(self.held) - context - 1)
        return perplexity(self.model, self.held, context=context, scored=scored, segments=4).value

    def workload(self) -> Workload | None:
        """What the model computes as it stands, for the device; None where it is measured here."""
        return None if self.device is None else self.model.workload(self.goal.prompt, self.goal.new_tokens)

    def seconds(self, workload: Workload | None = None) -> float:
        """Of decoding one token: measured here, or estimated for the device.

        Args:
            workload: `workload`'s, where it is known already.
        """
        rows = 1 if self.tree is None else len(self.tree)
        if self.device is not None and (workload := workload or self.workload()) is not None:
            return estimated_step(workload, self.device, rows) / self.tokens_a_step
        new = self.goal.new_tokens
        if self.heads is not None and self.tree is not None:
            runs = [medusa.decode(self.model, self.heads, self.tree, self.prompt(), new) for _ in range(3)]
            return min(run.seconds / max(1, run.made) for run in runs)
        ids = self.prompt()
        return self.model.measure(ids.shape[1], new, runs=2, ids=ids).phases["decode"].low / new


def estimated_step(workload: Workload, device: Device, rows: int) -> float:
    """Seconds of one decoding step of ``rows`` tokens of one text, halfway through a language model's new tokens."""
    phases = tuple(replace(p, cascade=with_rows(p.cascade, rows)) if p.name == "decode" else p for p in workload.phases)
    found = estimate(replace(workload, phases=phases), device, schedule={"decode": "fused"})
    return found.phase("decode").latency_per_repeat


@dataclass(frozen=True)
class StageResult:
    """What came of a stage.

    Args:
        title: a few words.
        kept: whether the model is as the stage left it.
        figures: what it measured or estimated, by name.
        why_not: why it is not kept.
        note: what else is to be said.
        source: C++ that it emitted.
    """

    title: str
    kept: bool
    figures: Mapping[str, float] = field(default_factory=dict)
    why_not: str = ""
    note: str = ""
    source: str = ""


class AccelerationStage(ABC):
    """A step of `accelerate`.

    Attributes:
        title: a few words.
    """

    title: ClassVar[str]

    @abstractmethod
    def why_not(self, job: Acceleration) -> str | None:
        """Why it does not suit; None when it does."""

    @abstractmethod
    def run(self, job: Acceleration, progress: Callable[[float], None]) -> StageResult:
        """Changes the job's model, or leaves it as it was."""


@dataclass(frozen=True)
class Distil(AccelerationStage):
    """AutoDistill: another, smaller network in the model's place, searched for this device and taught by the model.

    Args:
        space: of students; None: Llamas of parts of the model's own size.
        trials: students that the search tries.
        flash, steps: of the short distillations that rank, and of the long ones.
        finalists: students of the front that are distilled for long; the one with the least loss is taken.
        length, batch: tokens of a text, and texts a step.
        sampler: who chooses.
    """

    title: ClassVar[str] = "distilled student"

    space: DecoderSpace | None = None
    trials: int = 16
    flash: int = 40
    steps: int = 2000
    finalists: int = 3
    length: int = 64
    batch: int = 8
    sampler: str = "gp"

    def why_not(self, job: Acceleration) -> str | None:
        if len(job.held) <= self.length:
            return f"the text has no {self.length} tokens to judge by"
        return None

    def run(self, job: Acceleration, progress: Callable[[float], None]) -> StageResult:
        model, goal = job.model, job.goal
        space = self.space or parts_of(model, self.length)
        teacher = ObservedDecoder(model.network)

        def batches(part: Tensor, seed: int) -> Any:
            return (Batch(w[:, :-1], w[:, 1:]) for w in windows(part, self.length, self.batch, seed))

        taught = lessons(teacher, batches(job.training, goal.seed), min(self.steps, max(16, self.flash)))
        held = [next(batches(job.held, goal.seed + 1)) for _ in range(4)]

        def seconds(arch: StudentDecoder) -> float:
            student: Any = space.build(arch)
            return replace(job, model=LanguageModel(student.network, cache=model.cache)).seconds()

        search = AutoDistill(space, taught, held, seconds, flash=self.flash, seed=goal.seed)
        tried = search.run(
            self.trials, sampler=self.sampler, seed=goal.seed,
            progress=lambda trial, done, planned: progress(0.5 * done / self.trials),
        )  # fmt: skip
        front = sorted(tried.pareto(), key=lambda t: t.details["nats"])[: self.finalists]
        best = min(search.finish(front, self.steps), key=lambda found: found.quality.nats)
        before = quality(teacher, held)
        weights = sum(p.numel() for p in model.network.parameters())
        network: Any = best.network
        job.model = LanguageModel(network.network, model.tokenizer, cache=model.cache, name=f"student of {model.name}")
        figures = {
            "nats a token": best.quality.nats, "teacher's nats a token": before.nats,
            "parameters": best.parameters, "teacher's parameters": weights, "seconds a token": best.latency,
        }  # fmt: skip
        return StageResult(self.title, True, figures, note=str(best.arch))


def parts_of(model: LanguageModel, length: int) -> DecoderSpace:
    """Students of a quarter to the whole of a model's layers and width."""
    config = model.config
    layers = sorted({max(1, len(model.layers) * share // 4) for share in (1, 2, 3, 4)})
    widths = sorted({max(16, int(config.hidden_size) * share // 4 // 16 * 16) for share in (1, 2, 3, 4)})
    return DecoderSpace(
        int(config.vocab_size), length, int(config.max_position_embeddings), tuple(layers), tuple(widths),
        tuple(sorted({2 * w for w in widths})), (2, 4),
    )  # fmt: skip


@dataclass(frozen=True)
class ShorterCache(AccelerationStage):
    """SnapKV: of a prompt's tokens those that its end attends to stay in the cache.

    Args:
        capacity: tokens that stay; None: a quarter of the prompt.
        window, kernel: see `SnapKV`.
    """

    title: ClassVar[str] = "SnapKV"

    capacity: int | None = None
    window: int = 16
    kernel: int = 7

    def method(self, job: Acceleration) -> SnapKV:
        """What is applied."""
        return SnapKV(self.capacity or max(job.goal.prompt // 4, self.window + 1), self.window, self.kernel)

    def why_not(self, job: Acceleration) -> str | None:
        method = self.method(job)
        if job.goal.prompt <= method.capacity:
            return f"prompts of {job.goal.prompt} tokens are within its {method.capacity}"
        return method.why_not(job.model)

    def run(self, job: Acceleration, progress: Callable[[float], None]) -> StageResult:
        method, cache, before, seconds = self.method(job), job.model.cache, job.perplexity(), job.seconds()
        job.model = method.apply(job.model)
        after = job.perplexity()
        figures = {
            "kept tokens": float(method.capacity), "perplexity before": before, "perplexity": after,
            "seconds a token before": seconds, "seconds a token": job.seconds(),
        }  # fmt: skip
        if after > before * (1 + job.goal.floor):
            job.model.cache = cache
            why = f"perplexity would be {after / before - 1:.1%} worse, {job.goal.floor:.1%} are allowed"
            return StageResult(method.title, False, figures, why)
        return StageResult(method.title, True, figures)


@dataclass(frozen=True)
class ParallelDecoding(AccelerationStage):
    """Medusa: heads are trained on the model's own text, and the tree is as large as pays on the device.

    Args:
        heads: how many.
        sizes: rows of a step that are tried.
        seconds: of training.
        joint: train the model's weights too (Medusa-2); text then changes a little, but not with the tree.
        prompts, prompt, made: how many own texts are written, behind how many tokens, and of how many new ones.
    """

    title: ClassVar[str] = "Medusa"

    heads: int = 3
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    seconds: float = 60.0
    joint: bool = False
    prompts: int = 64
    prompt: int = 32
    made: int = 64

    def why_not(self, job: Acceleration) -> str | None:
        if len(job.training) <= self.prompt:
            return f"the text has no {self.prompt} tokens to begin with"
        return medusa.why_not(job.model) or (medusa2.why_not(job.model) if self.joint else None)

    def run(self, job: Acceleration, progress: Callable[[float], None]) -> StageResult:
        model, goal = job.model, job.goal
        before = job.seconds()
        text = written(model, job.training, self.prompts, self.prompt, self.made)
        kept_weights = copy.deepcopy(model.network.state_dict()) if self.joint else None
        quality_before = job.perplexity() if self.joint else 0.0
        if self.joint:
            torch.manual_seed(goal.seed)
            heads = MedusaHeads(int(model.config.hidden_size), self.heads)
            fit_jointly(heads, model, text.training, seconds=self.seconds, seed=goal.seed, progress=progress)
            accuracy = rank_accuracy(heads, model, text.judging, states_of(model, text.judging).float())
        else:
            heads, accuracy = trained_heads(
                model, text, self.heads, seconds=self.seconds, seed=goal.seed, progress=progress
            )
        figures: dict[str, float] = {f"head {k + 1} right": row[0] for k, row in enumerate(accuracy)}
        rates: dict[int, tuple[float, Tree, float]] = {}
        workload = job.workload()
        for rows in self.sizes:
            tree = Tree.best(accuracy, rows - 1)
            run = medusa.decode(model, heads, tree, job.prompt(), goal.new_tokens)
            made = run.made / max(1, run.steps)
            tried = replace(job, heads=heads, tree=tree, tokens_a_step=made)
            rates[rows] = tried.seconds(workload), tree, made
            figures[f"seconds a token at {rows} rows"] = rates[rows][0]
        rows = min(rates, key=lambda r: rates[r][0])
        after, tree, made = rates[rows]
        figures |= {"tokens a step": made, "seconds a token before": before, "seconds a token": after}
        why = "" if after < before else f"the best tree takes {after / before:.2f} times as long a token as none"
        if kept_weights is not None:
            worse = job.perplexity() / quality_before - 1
            figures["perplexity worse by"] = worse
            if worse > goal.floor:
                why = f"perplexity would be {worse:.1%} worse, {goal.floor:.1%} are allowed"
        title = f"Medusa-{2 if self.joint else 1}, {rows} rows"
        if why:
            if kept_weights is not None:
                model.network.load_state_dict(kept_weights)
            return StageResult(title, False, figures, why)
        job.heads, job.tree, job.tokens_a_step = heads, tree, made
        return StageResult(title, True, figures)


@dataclass(frozen=True)
class Circuit(AccelerationStage):
    """HIDA and Chrysalis: the feed-forward part of the layers as a circuit for an FPGA, emitted as C++ for synthesis.

    Its directives are found within the board's resources, the C++ is compiled, run and compared with the module, and
    the rules for bugs read it. The model itself stays as it is.

    Args:
        tokens: that go through together.
        most: copies of units that are tried at most.
    """

    title: ClassVar[str] = "circuit of the feed-forward part"

    tokens: int = 4
    most: int = 1 << 10

    def why_not(self, job: Acceleration) -> str | None:
        if job.device is None or job.device.kind != "fpga":
            return "the device is no FPGA"
        if job.device.name not in fpga_boards():
            return f"{job.device.name} is none of the boards {', '.join(fpga_boards())}"
        return None

    def run(self, job: Acceleration, progress: Callable[[float], None]) -> StageResult:
        assert job.device is not None
        board, module = fpga_board(job.device.name), job.model.decoder.layer(0).feed_forward
        inputs = torch.randn(self.tokens, int(job.model.config.hidden_size))
        try:
            program = loop_program(module, inputs, name="feed_forward")
            found, plain = explore(program, board, most=self.most), naive(program, board)
            progress(0.5)
            source, (made,) = emit(found.design), run_design(found.design, module, inputs)
            with torch.no_grad():
                difference = float((made - module(inputs)).abs().max())
            bugs = findings(source)
        except HastenError as error:
            return StageResult(self.title, False, why_not=str(error))
        figures = {
            "cycles between inputs": float(found.cost.interval), "cycles undirected": float(plain.cost.interval),
            "difference from the module": difference, "bugs found": float(len(bugs)),
        }  # fmt: skip
        why = f"the rules find {bugs[0].bug} in line {bugs[0].line}" if bugs else ""
        if difference > 1e-3:
            why = f"the C++ differs from the module by {difference:.2g}"
        return StageResult(self.title, not why, figures, why, source=source)


@dataclass(frozen=True)
class Accelerated:
    """What `accelerate` made.

    Args:
        model: with all that was kept.
        stages: what came of each, in order.
        before, after: seconds a decoded token, measured here or estimated for the device.
        perplexity_before, perplexity: on the held text.
        heads, tree: for several tokens a step, or None.
    """

    model: LanguageModel
    stages: tuple[StageResult, ...]
    before: float
    after: float
    perplexity_before: float
    perplexity: float
    heads: MedusaHeads | None = None
    tree: Tree | None = None

    @property
    def speedup(self) -> float:
        """Times as fast as before, in decoding."""
        return self.before / self.after

    def generate(self, ids: Tensor, new_tokens: int) -> Tensor:
        """Greedy continuations of prompts (batch, length): (batch, length + new_tokens)."""
        if self.heads is None or self.tree is None:
            found: Tensor = self.model.generate(ids, max_new_tokens=new_tokens, eos_token_id=None, do_sample=False)
            return found
        rows = [medusa.decode(self.model, self.heads, self.tree, row[None], new_tokens).ids for row in ids]
        return torch.cat(rows)

    def report(self) -> str:
        """A line for each stage, and one for the whole."""
        lines = []
        for stage in self.stages:
            said = "kept" if stage.kept else f"not kept ({stage.why_not})"
            told = [f"{name} {value:.4g}" for name, value in stage.figures.items()]
            lines.append("; ".join([f"{stage.title}: {said}", *told]))
        return "\n".join([*lines, f"{self.speedup:.2f} times as fast, perplexity {self.perplexity:.4g}"])


DEFAULT_STAGES: tuple[AccelerationStage, ...] = (ShorterCache(), ParallelDecoding(), Circuit())


def accelerate(
    model: LanguageModel | str | Path,
    tokens: Sequence[int] | Tensor | None = None,
    device: Device | None = None,
    *,
    stages: Sequence[AccelerationStage] = DEFAULT_STAGES,
    goal: Goal | None = None,
    progress: Progress = lambda message, share: None,
) -> Accelerated:
    """Applies the survey's methods to a language model, one after the other.

    Args:
        model: changed in place; or what `hasten.models.load_network` takes.
        tokens: of a text to learn from and to judge by; `hasten.data.text.default_text` when None.
        device: what it is for, estimated; None: this machine, measured.
        stages: in order. SnapKV, Medusa and, for an FPGA, a circuit, unless others are asked for: `Distil` trains long.
        goal: what it is made fast for.
        progress: told the stage and the share of it that is done.

    Raises:
        HastenError: no text, one that is too short, or a goal beyond the model's positions.
    """
    if not isinstance(model, LanguageModel):
        loaded = load_network(model)
        model = LanguageModel(loaded.network, loaded.tokenizer, name=loaded.name)
    goal = goal or Goal()
    if tokens is None:
        if model.tokenizer is None:
            raise HastenError("the model has no tokenizer to read a text with: give tokens")
        tokens = model.tokenizer(default_text(), add_special_tokens=False, verbose=False)["input_ids"]
    model.check_fits(goal.prompt + goal.new_tokens + 1)
    job = Acceleration(model, torch.as_tensor(tokens, dtype=torch.int64), device, goal)
    if len(job.held) < goal.prompt + 2:
        raise HastenError(
            f"a fifth of the text is {len(job.held)} tokens, prompts have {goal.prompt}: give a longer one"
        )
    before, quality_before = job.seconds(), job.perplexity()
    found = []
    for stage in stages:
        progress(stage.title, 0.0)
        if reason := stage.why_not(job):
            found.append(StageResult(stage.title, False, why_not=reason))
            continue

        def tell(share: float, title: str = stage.title) -> None:
            progress(title, share)

        found.append(stage.run(job, tell))
    return Accelerated(
        job.model, tuple(found), before, job.seconds(), quality_before, job.perplexity(), job.heads, job.tree
    )
