"""Questions with known answers, written for this project: facts with four options, and small additions."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.tasks.task import SPLITS, Batch, Better, Classification, Model, Split, Task, registered

# question, the right answer, three wrong ones
_FACTS = """
What is the capital of France?|Paris|Berlin|Madrid|Rome
What is the capital of Japan?|Tokyo|Beijing|Seoul|Bangkok
What is the capital of Italy?|Rome|Lisbon|Vienna|Athens
What is the capital of Egypt?|Cairo|Tunis|Nairobi|Lagos
What is the capital of Canada?|Ottawa|Toronto|Chicago|Boston
What is the capital of Germany?|Berlin|Munich|Zurich|Prague
What is the capital of Spain?|Madrid|Lisbon|Paris|Naples
What is the capital of Russia?|Moscow|Kyiv|Warsaw|Minsk
Which planet is closest to the Sun?|Mercury|Saturn|Neptune|Jupiter
Which planet is known as the Red Planet?|Mars|Venus|Uranus|Saturn
Which gas do plants take in from the air?|Carbon dioxide|Helium|Neon|Argon
What is water made of?|Hydrogen and oxygen|Iron and carbon|Nitrogen and helium|Sodium and chlorine
How many days are in a week?|Seven|Five|Nine|Twelve
How many legs does a spider have?|Eight|Four|Ten|Two
What do bees make?|Honey|Milk|Silk|Wool
Which animal says "meow"?|The cat|The cow|The horse|The duck
What is frozen water called?|Ice|Steam|Sand|Smoke
Which organ pumps blood through the body?|The heart|The liver|The stomach|The lungs
What is the largest ocean on Earth?|The Pacific Ocean|The Arctic Ocean|The Red Sea|The Baltic Sea
Which language is spoken in Brazil?|Portuguese|Japanese|Swedish|Greek
What do you use to write on a blackboard?|Chalk|A spoon|A hammer|Soap
Who wrote Romeo and Juliet?|William Shakespeare|Isaac Newton|Napoleon Bonaparte|Marco Polo
What color do you get by mixing blue and yellow?|Green|Black|Orange|White
What force pulls objects toward the Earth?|Gravity|Magnetism|Friction|Electricity
Where do fish live?|In water|In trees|In the desert|In the clouds
What is the opposite of hot?|Cold|Tall|Loud|Early
Which season comes after winter?|Spring|Autumn|Summer|Winter
What tool is used to cut paper?|Scissors|A pillow|A bucket|A mirror
In which direction does the Sun rise?|The east|The west|The north|The south
What is the hardest natural substance?|Diamond|Butter|Wood|Chalk
Which metal is attracted by a magnet?|Iron|Gold|Copper|Aluminium
How many months are in a year?|Twelve|Ten|Seven|Twenty
"""


@dataclass(frozen=True)
class Question:
    """A question with options; ``answer`` is the index of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int


def facts(seed: int = 0) -> list[Question]:
    """Plain facts with four options each, in an order that ``seed`` decides."""
    rng = random.Random(seed)
    found = []
    for line in _FACTS.strip().splitlines():
        text, right, *wrong = line.split("|")
        options = [right, *wrong]
        rng.shuffle(options)
        found.append(Question(text, tuple(options), options.index(right)))
    return found


def additions(count: int, seed: int = 0, largest: int = 9) -> list[tuple[str, str]]:
    """(prompt, answer) of sums, two solved ones before each."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        pairs = [(rng.randint(1, largest), rng.randint(1, largest)) for _ in range(3)]
        shown = "".join(f"{a} + {b} = {a + b}\n" for a, b in pairs[:2])
        a, b = pairs[2]
        found.append((f"{shown}{a} + {b} =", f" {a + b}"))
    return found


def hidden_number(seed: int = 0) -> tuple[str, str, str]:
    """(sentence, question, answer): a number to hide in a long text and to ask for at its end."""
    number = str(random.Random(seed).randint(10000, 99999))
    return (
        f"\nThe secret number is {number}. Remember it.\n",
        "\nWhat is the secret number? The secret number is",
        f" {number}",
    )


def key_values(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Different words, each with a number of three digits: a list to look things up in."""
    words = [
        "apple",
        "river",
        "stone",
        "candle",
        "window",
        "garden",
        "silver",
        "tiger",
        "ocean",
        "pepper",
        "marble",
        "rocket",
        "violin",
        "forest",
        "bridge",
        "copper",
        "lemon",
        "castle",
        "mirror",
        "button",
        "carpet",
        "dragon",
        "engine",
        "feather",
        "guitar",
        "hammer",
        "island",
        "jacket",
        "kettle",
        "ladder",
        "magnet",
        "needle",
    ]
    rng = random.Random(seed)
    rng.shuffle(words)
    return [(word, str(rng.randint(100, 999))) for word in words[:count]]


@registered("facts")
class Facts(Classification):
    """`facts`, shuffled by a fixed seed: three in five are for training, one for validation, one for the test."""

    description = "plain facts with four options each"
    given = "a list of `Question`"
    answered = "scores (batch, 4) of the options"
    classes = 4

    def __init__(self) -> None:
        every = facts()
        random.Random(0).shuffle(every)
        fifth = len(every) // 5
        cut = len(every) - 2 * fifth
        parts = (every[:cut], every[cut : cut + fifth], every[cut + fifth :])
        self.parts: dict[Split, list[Question]] = dict(zip(SPLITS, parts, strict=True))

    def examples(self, split: Split) -> int:
        return len(self.parts[split])

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(self.examples(split), (size,), generator=generator).tolist()
        return _asked([self.parts[split][i] for i in chosen])

    def take(self, split: Split, first: int, last: int) -> Batch:
        return _asked(self.parts[split][first:last])


def _asked(questions: list[Question]) -> Batch:
    return Batch(questions, torch.tensor([q.answer for q in questions]))


@registered("additions")
class Additions(Task):
    """Sums as `additions` has them; which pairs of numbers are asked in the end is each split's own.

    Args:
        largest: number of a sum.

    Raises:
        HastenError: too few pairs to split.
    """

    description = "small sums to complete, behind two that are solved"
    given = "a list of prompts"
    answered = "a list of what follows each, which is right when it begins with the sum"
    metric = "accuracy"
    better: ClassVar[Better] = "higher"
    best = 1.0
    chance = 0.0

    def __init__(self, largest: int = 9) -> None:
        if largest < 5:
            raise HastenError("sums of numbers up to less than 5 are too few to split: give a largest of at least 5")
        self.largest = largest
        pairs = [(a, b) for a in range(1, largest + 1) for b in range(1, largest + 1)]
        random.Random(0).shuffle(pairs)
        fifth = len(pairs) // 5
        cuts = (pairs[2 * fifth :], pairs[:fifth], pairs[fifth : 2 * fifth])
        self.pairs: dict[Split, list[tuple[int, int]]] = dict(zip(SPLITS, cuts, strict=True))

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        prompts, answers = [], []
        for _ in range(size):
            shown = torch.randint(1, self.largest + 1, (2, 2), generator=generator).tolist()
            a, b = self.pairs[split][int(torch.randint(len(self.pairs[split]), (), generator=generator))]
            prompts.append("".join(f"{x} + {y} = {x + y}\n" for x, y in shown) + f"{a} + {b} =")
            answers.append(a + b)
        return Batch(prompts, torch.tensor(answers))

    def loss(self, model: Model, batch: Batch) -> Tensor:
        raise HastenError("additions are asked of a language model, not trained on")

    def count(self, answers: list[str], targets: Tensor) -> tuple[float, int]:
        firsts = [re.match(r"\s*(\d+)", answer) for answer in answers]
        right = [f is not None and int(f[1]) == t for f, t in zip(firsts, targets.tolist(), strict=True)]
        return float(sum(right)), len(right)

    def right(self, batch: Batch) -> list[str]:
        return [f" {answer}" for answer in batch.targets.tolist()]

    def blind(self, batch: Batch, generator: torch.Generator) -> list[str]:
        return [" what" for _ in batch.inputs]
