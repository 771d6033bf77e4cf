"""Is there a bug in this circuit? Designs in C++ for synthesis, and their mutants."""

from __future__ import annotations

import random

import torch

from hasten.tasks.hls.bugs import Case, build, designs, mutants
from hasten.tasks.task import SPLITS, Batch, Classification, Split, registered


@registered("hls-bugs")
class BugDetection(Classification):
    """Cases with and without a bug; all cases of a design are in one split.

    Args:
        verified: whether only mutants count whose bug shows when they are compiled and run, which takes a C++ compiler
            and some minutes; else every mutant does.

    Raises:
        HastenError: there is no compiler, where one is needed.
    """

    description = "whether a function in C++ for high-level synthesis has a bug (Chrysalis, in arXiv 2406.10903)"
    given = "a list of source texts"
    answered = "scores (batch, 2) of no bug and of a bug"
    classes = 2

    def __init__(self, *, verified: bool = False) -> None:
        clean = designs(3)
        cases = build(clean) if verified else [case for design in clean for case in (design, *mutants(design))]
        names = sorted({case.name for case in cases})
        random.Random(0).shuffle(names)
        fifth = len(names) // 5
        own = (set(names[2 * fifth :]), set(names[:fifth]), set(names[fifth : 2 * fifth]))
        self.parts: dict[Split, list[Case]] = {
            split: [case for case in cases if case.name in mine] for split, mine in zip(SPLITS, own, strict=True)
        }

    def examples(self, split: Split) -> int:
        return len(self.parts[split])

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        """With a bug and without are as likely."""
        kinds = [[c for c in self.parts[split] if bool(c.bug) == bad] for bad in (False, True)]
        sides = torch.randint(2, (size,), generator=generator).tolist()
        return _batch([kinds[bad][int(torch.randint(len(kinds[bad]), (), generator=generator))] for bad in sides])

    def take(self, split: Split, first: int, last: int) -> Batch:
        return _batch(self.parts[split][first:last])


def _batch(cases: list[Case]) -> Batch:
    return Batch([case.source for case in cases], torch.tensor([int(bool(case.bug)) for case in cases]))
