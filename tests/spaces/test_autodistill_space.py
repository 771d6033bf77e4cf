"""The space of students of a teacher that reads real text."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.spaces.autodistill import HAND_MADE, Classroom, problem, qualities, searched, state_of, teacher_quality

ROOM = Classroom(
    characters=30_000, length=16, batch=8, teacher=(2, 48, 32, 2, 1, 64), teacher_steps=120, lessons=4, held=2
)


def test_a_teacher_learns_and_arms_begin_at_the_same_points() -> None:
    teacher = ROOM.train_teacher()
    untrained = ROOM.make_teacher().eval()
    assert teacher_quality(ROOM, teacher).nats < teacher_quality(ROOM, untrained).nats - 0.5
    assert teacher_quality(ROOM, teacher).accuracy > 0.15
    state = state_of(teacher)
    one, other = (searched(ROOM, state, "pi5", 2, sampler, 4, seed=3, start=2) for sampler in ("random", "gp"))
    assert [t.params for t in one[:2]] == [t.params for t in other[:2]]
    assert [t.values for t in one[:2]] == [t.values for t in other[:2]]
    space = ROOM.space()
    taught, alone = (qualities(ROOM, state, "pi5", [space.smallest()], 4, taught) for taught in (True, False))
    assert taught != alone
    assert taught == qualities(ROOM, state, "pi5", [space.smallest()], 4)


def test_the_hand_made_student_is_of_the_space() -> None:
    assert ROOM.space().valid(HAND_MADE)


def test_what_is_unknown_fails_before_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classroom, "train_teacher", lambda self: pytest.fail("trained"))
    with pytest.raises(HastenError, match="abacus"):
        problem("abacus")
    monkeypatch.undo()
    with pytest.raises(HastenError, match="teacher_steps="):
        problem(teacher_steps=0)


def test_its_points_are_students() -> None:
    torch.manual_seed(0)
    made = problem("pi5", teacher_steps=1, flash=1)
    values, _, details = made.score(made.space.sample(0))
    assert 0 < values["likelihood"] <= 1
    assert 0 < values["latency"] < 1
    assert details["parameters"] > 0
