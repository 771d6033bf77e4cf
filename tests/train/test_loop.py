"""The one loop: the numbers of a plain one, budgets, averages, broken losses, and going on from a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.train import descend, fit, moving_average, parameter_groups, train
from hasten.train.schedules import Linear, WarmupCosine


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def batches(module: nn.Module, generator: torch.Generator) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        x = torch.randn(8, 6, generator=generator)
        return (module(x) - x[:, :3].sin()).square().mean()

    return loss


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(module, 0.1), lr=1e-2, betas=(0.9, 0.95))


def ticks(step: float = 0.01) -> Callable[[], float]:
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    return clock


@pytest.mark.parametrize(("warmup", "final", "clip"), [(0.1, 0.01, 1.0), (0.0, 1.0, 0.0), (0.3, 0.1, 0.05)])
def test_fit_is_a_plain_loop_to_the_last_bit(warmup: float, final: float, clip: float) -> None:
    ours, plain = network(), network()
    steps, peak = 40, 2e-2
    loss = batches(ours, torch.Generator().manual_seed(1))
    found = fit(ours, loss, steps=steps, peak=peak, warmup=warmup, final=final, clip=clip)
    loss = batches(plain, torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(parameter_groups(plain, 0.1), lr=peak, betas=(0.9, 0.95))
    rising = max(1, round(warmup * steps))
    wanted = []
    for step in range(steps):
        share = (step + 1) / rising
        if step >= rising:
            share = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()
        wanted.append(value.item())
    assert found == wanted
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_a_budget_in_seconds() -> None:
    module = network()
    rates = []
    optimizer = adamw(module)
    trained = train(
        module, batches(module, torch.Generator().manual_seed(0)), optimizer=optimizer, seconds=1.0,
        schedule=Linear(0.2), clock=ticks(0.125),
        progress=lambda moment, loss: rates.append(optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    assert trained.stopped == "seconds"
    assert trained.steps == len(trained.losses) == 7
    assert trained.seconds == pytest.approx(1.0)
    assert rates == pytest.approx([1e-2 * max(0.2, 1 - 0.125 * (i + 1)) for i in range(7)])
    assert optimizer.param_groups[0]["lr"] == 1e-2  # its own again
    assert train(module, lambda step: module(torch.ones(1, 6)).sum(), optimizer=adamw, seconds=0.0).steps == 1


def test_what_is_used_up_first_ends_it() -> None:
    module = network()
    loss = batches(module, torch.Generator().manual_seed(0))
    assert train(module, loss, optimizer=adamw, steps=3, seconds=1.0, clock=ticks(0.1)).stopped == "steps"
    assert train(module, loss, optimizer=adamw, steps=30, seconds=1.0, clock=ticks(0.1)).stopped == "seconds"
    assert train(module, loss, optimizer=adamw, steps=0).losses == []
    for budget in ({}, {"steps": -1}, {"seconds": -1.0}):
        with pytest.raises(HastenError, match="needs a budget"):
            train(module, loss, optimizer=adamw, **budget)  # type: ignore[arg-type]


def test_several_losses_are_one_of_their_sum() -> None:
    one, other, third = network(), network(), network()
    x = torch.randn(8, 6)

    def parts(step: int) -> Iterator[Tensor]:
        for piece in x.split(4):
            yield other(piece).square().sum()

    def backward(step: int) -> float:
        value = third(x).square().sum()
        value.backward()
        return value.item()

    def sgd(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), 1e-3)

    whole = train(one, lambda step: one(x).square().sum(), optimizer=sgd, steps=5, clip=1.0)
    split = train(other, parts, optimizer=sgd, steps=5, clip=1.0)
    own = train(third, backward, optimizer=sgd, steps=5, clip=1.0)
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    assert own.losses == whole.losses


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_a_broken_loss_brings_back_what_was_good(keep: int) -> None:
    module = network()
    states: list[dict[str, Tensor]] = []

    def loss(step: int) -> Tensor:
        states.append(copy.deepcopy(module.state_dict()))
        x = torch.full((4, 6), math.inf if step == 7 else 1.0)
        return module(x).square().mean()

    trained = train(module, loss, optimizer=adamw, steps=20, keep=keep)
    assert trained.stopped == "not finite"
    assert trained.steps == len(trained.losses) == 7
    assert trained.broken is not None
    assert not math.isfinite(trained.broken)
    assert trained.restored == {0: None, 1: 6, 5: 5}[keep]
    wanted = states[7 if trained.restored is None else trained.restored]
    assert all(torch.equal(v, wanted[k]) for k, v in module.state_dict().items())
    with pytest.raises(HastenError, match="head broke: the loss is nan at step 7"):
        trained.finished("the head")


def test_weights_broken_by_the_last_step_are_not_kept() -> None:
    module = nn.Linear(1, 1)

    def loss(step: int) -> Tensor:
        value = module(torch.ones(1, 1)).sum()
        return value * torch.tensor(1.0) if step < 3 else (value - value).abs().sqrt()  # a NaN gradient

    trained = train(module, loss, optimizer=adamw, steps=4)
    assert trained.stopped == "not finite"
    assert trained.restored == 0
    assert all(p.isfinite().all() for p in module.parameters())


def test_evaluation_neither_costs_time_nor_changes_the_mode() -> None:
    module = network().train()
    modes = []
    clock = ticks(0.125)

    def evaluate(steps: int) -> float:
        modes.append((module.training, torch.is_grad_enabled()))
        for _ in range(50):
            clock()
        return -steps

    trained = train(
        module,
        batches(module, torch.Generator()),
        optimizer=adamw,
        seconds=1.0,
        evaluate=evaluate,
        every=4,
        clock=clock,
    )
    assert trained.evaluations == [(4, -4), (6, -6)]  # an evaluation itself reads the clock once too often
    assert set(modes) == {(False, False)}
    assert module.training
    assert trained.seconds == pytest.approx(1.0)


def test_a_moving_average() -> None:
    module = network()
    average = moving_average(module, 0.5)
    wanted: list[Tensor] = []

    def follow(moment: Any, loss: float) -> None:
        now = module[0].weight.detach().clone()
        wanted.append(now if not wanted else 0.5 * wanted[-1] + 0.5 * now)

    train(module, batches(module, torch.Generator()), optimizer=adamw, steps=6, average=average, progress=follow)
    torch.testing.assert_close(average.module[0].weight, wanted[-1])


def test_bfloat16_computes_the_loss_alone() -> None:
    module = network()
    kinds = []
    hook = module[0].register_forward_hook(lambda m, given, made: kinds.append(made.dtype))
    trained = train(module, batches(module, torch.Generator()), optimizer=adamw, steps=3, bfloat16=True)
    hook.remove()
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert trained.stopped == "steps"


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 1e-2, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("make", [adamw, sgd])
def test_a_cut_training_goes_on_with_the_same_losses(tmp_path: Path, make: Any) -> None:
    def run(path: Path | None, cut: int = 0) -> tuple[list[float], nn.Module, nn.Module, list[tuple[int, float]]]:
        module, generator = network(), torch.Generator().manual_seed(3)
        module.insert(1, nn.Dropout(0.2))  # draws from torch's own generator
        average = moving_average(module, 0.9)
        inner = batches(module, generator)
        torch.manual_seed(5)

        def loss(step: int) -> Tensor:
            if cut and step == cut:
                raise KeyboardInterrupt
            return inner(step)

        trained = train(
            module, loss, optimizer=make, steps=30, schedule=WarmupCosine(0.2), clip=1.0, average=average,
            checkpoint=path, save=4, generators=[generator],
            evaluate=lambda steps: float(module[0].weight.sum()), every=6,
        )  # fmt: skip
        return trained.losses, module, average, trained.evaluations

    whole = run(None)
    path = tmp_path / "training.safetensors"
    for cut in (10, 21):
        with pytest.raises(KeyboardInterrupt):
            run(path, cut)
    resumed = run(path)
    assert resumed[0] == whole[0]
    assert resumed[3] == whole[3]
    for one, other in zip(resumed[1:3], whole[1:3], strict=True):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert run(path)[0] == whole[0]  # a finished one has nothing to do


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    module = network()
    train(module, batches(module, torch.Generator()), optimizer=adamw, steps=2, checkpoint=path)
    other = nn.Linear(2, 2)
    with pytest.raises(HastenError, match="of another training"):
        train(other, lambda step: other(torch.ones(1, 2)).sum(), optimizer=adamw, steps=2, checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(HastenError, match="not a training's checkpoint"):
        train(other, lambda step: other(torch.ones(1, 2)).sum(), optimizer=adamw, steps=2, checkpoint=path)


def test_tied_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    made = []
    ids = torch.arange(5)
    for steps in (2, 2):
        torch.manual_seed(0)
        module = Tied()
        train(
            module, lambda step, m=module: nn.functional.cross_entropy(m.head(m.embedding(ids)), ids),  # type: ignore[misc]
            optimizer=adamw, steps=steps, checkpoint=tmp_path / "tied.safetensors",
        )  # fmt: skip
        assert module.head.weight is module.embedding.weight
        made.append(module.head.weight.detach().clone())
    assert torch.equal(*made)


def test_one_step_down() -> None:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones(1, 2)  # of before: forgotten
    descend(optimizer, (module(torch.tensor([[3.0, 4.0]])) * 100).sum(), clip=1.0)
    moved = torch.cat((before - module.weight.detach(), torch.zeros(1, 0)), 1)
    assert float(moved.norm()) == pytest.approx(0.1 * 5 / math.sqrt(26), rel=1e-4)
    standing = module.weight.detach().clone()
    assert math.isnan(descend(optimizer, module(torch.full((1, 2), math.nan)).sum()))
    assert torch.equal(module.weight.detach(), standing)
