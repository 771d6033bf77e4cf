"""Questions with known answers, written for this project: facts with four options, and small additions."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
