"""AutoDistill (arXiv 2201.08539): which small network a large one should be distilled into, for one device.

A multi-objective Bayesian search over students weighs quality against latency on the device, which a cost model tells.
A candidate's quality is that after a flash distillation: a few steps of the teacher's lessons, which need not make it
good, only rank it. It is the likelihood of the right tokens: in a few steps many students find none but the commonest
token, and their accuracy would be the same. Those on the front are then distilled for long.

    search = AutoDistill(space, lessons(teacher, batches, 40), held, estimated(space, load_device("pi5")))
    found = search.run(20)
    students = search.finish(found.pareto(), steps=2000)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.search.hypervolume import hypervolume
from hasten.search.networks.students import Students
from hasten.search.problem import Infeasible, Objective, Problem, Trial
from hasten.search.samplers import make_sampler
from hasten.search.space import Params
from hasten.search.study import Study, StudyResult
from hasten.tasks.task import IGNORED, Batch
from hasten.train.distilling import Distillation, Lesson, distill, in_turn

S = TypeVar("S", bound=Any)


class Quality(NamedTuple):
    """Of a network on held-out batches: the share of asked tokens that it finds, and its mean loss in nats a token."""

    accuracy: float
    nats: float

    @property
    def likelihood(self) -> float:
        """The probability that the right token is given, in the geometric mean."""
        return math.exp(-self.nats)


@torch.no_grad()
def quality(network: Callable[[Any], Any], held: Sequence[Batch]) -> Quality:
    """Of a network that answers with logits (batch, length, classes)."""
    right, lost, asked = 0.0, 0.0, 0
    for batch in held:
        wanted = batch.targets != IGNORED
        if not wanted.any():
            continue
        logits, targets = network(batch.inputs)[wanted].float(), batch.targets[wanted]
        right += float((logits.argmax(-1) == targets).sum())
        lost += float(F.cross_entropy(logits, targets, reduction="sum"))
        asked += len(targets)
    if not asked:
        raise HastenError("the held-out batches ask for nothing: give more of them")
    return Quality(right / asked, lost / asked)


@dataclass(frozen=True)
class Distilled(Generic[S]):
    """A student after its long distillation, with its latency in seconds and its weights' number."""

    arch: S
    network: nn.Module
    quality: Quality
    latency: float
    parameters: int


@dataclass
class AutoDistill(Generic[S]):
    """Students, a teacher's lessons, and what a student costs.

    Args:
        space: of students.
        lessons: of the teacher (`hasten.train.distilling.lessons`); a distillation takes them in turn.
        held: batches to judge by.
        latency: seconds of a student on the device that it is for, such as
            `hasten.search.networks.specialize.estimated` gives.
        flash: steps of a flash distillation.
        recipe: of distillations.
        seed: of students' first weights.

    Raises:
        HastenError: no lessons, nothing to judge by, or no step.

    Attributes:
        flashed: what flash distillations found so far; none is done twice.
    """

    space: Students[S]
    lessons: Sequence[Lesson]
    held: Sequence[Batch]
    latency: Callable[[S], float]
    flash: int = 40
    recipe: Distillation = field(default_factory=Distillation)
    seed: int = 0
    flashed: dict[S, Quality] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lessons or not self.held or self.flash < 1:
            raise HastenError("a distillation has lessons, batches to judge by, and at least one step")

    def train(self, arch: S, steps: int, recipe: Distillation | None = None) -> tuple[nn.Module, Quality]:
        """A new student of these sizes after so many steps; the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.space.build(arch)
        distill(network, in_turn(self.lessons), steps=steps, recipe=recipe or self.recipe, seed=self.seed)
        return network.eval(), quality(network, self.held)

    def flash_quality(self, arch: S) -> Quality:
        """After a flash distillation."""
        if arch not in self.flashed:
            self.flashed[arch] = self.train(arch, self.flash)[1]
        return self.flashed[arch]

    def problem(self, limit: float | None = None) -> Problem:
        """Flash likelihood against latency; ``limit`` seconds are the most that a student may take, and one that takes
        more is not distilled."""

        def evaluate(params: Params) -> Mapping[str, Any]:
            arch = self.space.from_params(params)
            seconds = self.latency(arch)
            if limit is not None and seconds > limit:
                raise Infeasible(f"{seconds:.3g} s are more than {limit:.3g}", seconds / limit - 1)
            found = self.flash_quality(arch)
            return {
                "likelihood": found.likelihood, "latency": seconds,
                "accuracy": found.accuracy, "nats": found.nats, "parameters": self.space.parameters(arch), **vars(arch),
            }  # fmt: skip

        objectives = (Objective("likelihood", "maximize"), Objective("latency", "minimize", "s"))
        identity = {
            "flash": str(self.flash), "recipe": repr(self.recipe), "seed": str(self.seed), "choices": repr(self.space)
        }  # fmt: skip
        return Problem("autodistill", self.space.space(), objectives, evaluate, identity=identity)

    def run(
        self, trials: int, *, sampler: str | Any = "gp", limit: float | None = None, seed: int = 0,
        study: Study | None = None, **options: Any,
    ) -> StudyResult:  # fmt: skip
        """Tries ``trials`` students: ``gp`` (Bayesian, with expected hypervolume improvement) or any other sampler.

        Args:
            trials: how many.
            sampler: as `Study.run` takes it, as it does ``options``. ``gp`` draws a quarter of its trials at random.
            limit: see `problem`.
            seed: of the sampler.
            study: where results are kept; in memory when None.
        """
        problem = self.problem(limit)
        if sampler == "gp":
            sampler = make_sampler("gp", problem.space, seed, n_startup_trials=max(2, trials // 4))
        return (study or Study()).run(problem, sampler=sampler, trials=trials, seed=seed, **options)

    def arch(self, trial: Trial) -> S:
        """The student that a trial was of."""
        return self.space.from_params(trial.params)

    def finish(self, trials: Sequence[Trial], steps: int) -> list[Distilled[S]]:
        """Those students distilled for long, the most accurate first."""
        found = []
        for trial in trials:
            arch = self.arch(trial)
            network, judged = self.train(arch, steps)
            found.append(Distilled(arch, network, judged, self.latency(arch), self.space.parameters(arch)))
        return sorted(found, key=lambda one: -one.quality.accuracy)


def front_volume(trials: Sequence[Trial], corner: tuple[float, float]) -> float:
    """Hypervolume of trials' (1 - likelihood, latency) under a corner of the same, as a share of the corner's own."""
    points = [(1 - t.values["likelihood"], t.values["latency"]) for t in trials if t.feasible]
    return hypervolume(points, corner) / (corner[0] * corner[1]) if points else 0.0
