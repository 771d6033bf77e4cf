"""Which small encoder to distil a teacher of real text into, for one device: quality against latency (AutoDistill)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from hasten.cost.latency.correlation import spearman
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.language.bottleneck_encoder import BottleneckConfig, BottleneckEncoder
from hasten.search.networks.autodistill import AutoDistill, Quality, front_volume, quality
from hasten.search.networks.specialize import estimated
from hasten.search.networks.students import EncoderSpace, StudentEncoder
from hasten.search.problem import Problem, Trial
from hasten.tasks.masked_text import MaskedText
from hasten.tasks.task import Batch
from hasten.train.distilling import UNTAUGHT, lessons
from hasten.train.fitting import fit_task

ENVIRONMENT: Mapping[str, Any] = {"teacher_steps": 0}
"""How it is made as an environment: `gymnasium.make` trains no teacher that was not asked for."""

NEEDS: str = "teacher_steps"

HAND_MADE = StudentEncoder(layers=4, width=128, bottleneck=32, heads=4, feed_forwards=4, inner=128)
"""A student that nobody searched: MobileBERT's proportions at a quarter of its widths and a sixth of its layers."""


@dataclass(frozen=True)
class Classroom:
    """What students learn, and from whom.

    Args:
        source, characters: of the text, see `MaskedText`.
        length, batch: tokens of a text, and texts a step.
        teacher: its sizes: layers, width, bottleneck, heads, feed-forwards, inner width.
        teacher_steps: that it is trained for.
        lessons: batches that students take in turn.
        held: batches to judge by.
        seed: of weights and batches.
    """

    source: str = "sources"
    characters: int = 400_000
    length: int = 32
    batch: int = 16
    teacher: tuple[int, ...] = (4, 160, 80, 4, 2, 160)
    teacher_steps: int = 600
    lessons: int = 80
    held: int = 16
    seed: int = 0

    @functools.cached_property
    def task(self) -> MaskedText:
        """Masked characters of the text."""
        return MaskedText(self.source, self.length, characters=self.characters)

    def space(self) -> EncoderSpace:
        """The students."""
        return EncoderSpace(
            self.task.vocabulary, self.task.classes, self.length, (1, 2, 3, 4), (32, 64, 96, 128), (16, 32, 48, 64),
            (1, 2, 4), (1, 2, 3, 4), (32, 64, 128),
        )  # fmt: skip

    def make_teacher(self) -> BottleneckEncoder:
        """The teacher with its first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return BottleneckEncoder(
                BottleneckConfig(self.task.vocabulary, self.task.classes, self.length, *self.teacher)
            )

    def train_teacher(self) -> BottleneckEncoder:
        """The teacher, trained on the task alone.

        Raises:
            HastenError: for no steps.
        """
        if self.teacher_steps < 1:
            raise HastenError("there is no teacher: give teacher_steps= to train one, as hasten search does")
        teacher = self.make_teacher()
        fit_task(teacher, self.task, size=self.batch, seed=self.seed, steps=self.teacher_steps, peak=3e-3)
        return teacher.eval()

    def autodistill(self, teacher: BottleneckEncoder, device: str, flash: int) -> AutoDistill[StudentEncoder]:
        """The search for a device of the catalogue, with so many steps of a flash distillation."""
        space = self.space()
        taught = lessons(teacher, self.task.batches("training", self.batch, self.seed + 1), self.lessons)
        latency = estimated(space, load_device(device))
        return AutoDistill(space, taught, self.held_batches(), latency, flash, seed=self.seed)

    def held_batches(self) -> list[Batch]:
        """What students and teachers are judged by."""
        return list(itertools.islice(self.task.batches("validation", 64, self.seed), self.held))


QUICK = Classroom(
    characters=30_000, length=16, batch=4, teacher=(1, 32, 16, 2, 1, 32), teacher_steps=4, lessons=2, held=1
)
"""Where code shall run and no figure counts."""

LONG = Classroom(characters=1_500_000, teacher=(6, 256, 128, 4, 3, 512), teacher_steps=3000, lessons=320)
"""For an hour: a teacher of two to three million weights."""

State = Mapping[str, NDArray[Any]]


def state_of(network: torch.nn.Module) -> State:
    """Its weights as arrays: tensors would come to another process by shared memory, a file each."""
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def _search(room: Classroom, state: State, device: str, flash: int) -> AutoDistill[StudentEncoder]:
    teacher = room.make_teacher()
    teacher.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    return room.autodistill(teacher.eval(), device, flash)


def qualities(
    room: Classroom, state: State, device: str, archs: Sequence[StudentEncoder], steps: int, taught: bool = True
) -> list[Quality]:
    """An arm: students after so many steps, with the teacher of this state or without a teacher."""
    search = _search(room, state, device, steps)
    return [search.train(arch, steps, None if taught else UNTAUGHT)[1] for arch in archs]


def searched(
    room: Classroom, state: State, device: str, flash: int, sampler: str, trials: int, seed: int, start: int = 0
) -> list[Trial]:
    """An arm: a search's trials. The first ``start`` points are drawn by the seed, the same for every sampler."""
    search = _search(room, state, device, flash)
    points = search.space.space()
    first = [points.sample(1000 * seed + i) for i in range(start)]
    return search.run(trials, sampler=sampler, seed=seed, first=first).trials


def teacher_quality(room: Classroom, teacher: BottleneckEncoder) -> Quality:
    """On the batches that students are judged by."""
    return quality(teacher, room.held_batches())


Run = Callable[[Callable[..., Any], Mapping[str, tuple[Any, ...]]], Mapping[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What a search was worth.

    Args:
        students: that the ranking is judged on, drawn by chance.
        ranking: what orders them -> rank correlation with their likelihood after ten times as many steps: ``flash``,
            ``untaught`` (as many steps without the teacher), ``parameters``.
        volumes: sampler -> mean hypervolume of its fronts.
        teacher, chosen, hand_made: their quality, of the students after the long distillation.
        faster: by how much the chosen student is estimated to be faster than the hand-made one.
        student: the one chosen: the likeliest of Bayesian search's that take no longer than the hand-made one.
    """

    students: int
    ranking: Mapping[str, float]
    volumes: Mapping[str, float]
    teacher: Quality
    chosen: Quality
    hand_made: Quality
    faster: float
    student: StudentEncoder


def judge(
    room: Classroom, device: str, flash: int, trials: int, start: int, seeds: Sequence[int], run: Run
) -> Judged:  # fmt: skip
    """Bayesian search beside random search in as many trials from the same points, and its students beside others.

    Args:
        room: what is learned.
        device: of the catalogue.
        flash: steps of a flash distillation; long ones take ten times as many.
        trials, start: of each search, and those that all begin with.
        seeds: of the searches.
        run: (function, name -> arguments) to name -> result, such as `run_arms` wrapped.
    """
    teacher = room.train_teacher()
    state, space = state_of(teacher), room.space()
    latency = estimated(space, load_device(device))
    pairs = list(itertools.product(("gp", "random"), seeds))
    found = run(searched, {f"{n} {s}": (room, state, device, flash, n, trials, s, start) for n, s in pairs})
    corner = (1.0, max(t.values["latency"] for made in found.values() for t in made))
    volumes = {n: sum(front_volume(found[f"{n} {s}"], corner) for s in seeds) / len(seeds) for n in ("gp", "random")}
    # Searched students would be alike: the ranking is judged on those that chance drew.
    drawn = {space.from_params(t.params): t.values["likelihood"] for t in found[f"random {seeds[0]}"][:12]}
    searched_ = [t for s in seeds for t in found[f"gp {s}"]]
    quick = [t for t in searched_ if t.values["latency"] <= latency(HAND_MADE)] or searched_
    student = space.from_params(max(quick, key=lambda t: t.values["likelihood"]).params)
    archs = [*drawn, student, HAND_MADE]
    arms: dict[str, tuple[Any, ...]] = {f"{i}": (room, state, device, [a], 10 * flash) for i, a in enumerate(archs)}
    arms["untaught"] = (room, state, device, list(drawn), flash, False)
    done = run(qualities, arms)
    long = [done[f"{i}"][0] for i in range(len(archs))]
    grown = [q.likelihood for q in long[: len(drawn)]]
    orders = {
        "flash": list(drawn.values()), "untaught": [q.likelihood for q in done["untaught"]],
        "parameters": [float(space.parameters(a)) for a in drawn],
    }  # fmt: skip
    return Judged(
        len(drawn), {name: spearman(order, grown) for name, order in orders.items()}, volumes,
        teacher_quality(room, teacher), long[-2], long[-1], latency(HAND_MADE) / latency(student), student,
    )  # fmt: skip


def problem(
    device: str = "pi5", *, source: str = "sources", teacher_steps: int = 600, flash: int = 60, seed: int = 0
) -> Problem:
    """Likelihood of masked tokens after a flash distillation against latency of one text, estimated.

    Args:
        device: of the catalogue or a file.
        source: of the text, see `MaskedText`.
        teacher_steps: of the teacher's training, which comes first: about a minute.
        flash: steps of a flash distillation.
        seed: of weights and batches.

    Raises:
        HastenError: no such device or text, or no teacher.
    """
    load_device(device)  # what is unknown fails before a training, not after it
    room = Classroom(source, teacher_steps=teacher_steps, seed=seed)
    return room.autodistill(room.train_teacher(), device, flash).problem()
