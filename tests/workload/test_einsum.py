"""Cascades compare by what they compute, and fold identical layers exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from hasten.workload import Access, Cascade, Einsum, Op, Role, Tensor, language_model, trace


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, width)
        self.down = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def stack(*widths: int) -> nn.Module:
    return nn.Sequential(*(Block(w) for w in widths), nn.Linear(16, 4))


def test_identical_layers_fold_and_others_do_not() -> None:
    cascade = trace(stack(32, 32, 48, 32), torch.zeros(5, 16)).phases[0].cascade
    groups = cascade.groups()
    assert [(g.module, g.repeats) for g in groups] == [("*", 3), ("*", 1), ("*", 1)]


def test_a_fold_is_exact() -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    for phase in language_model(config, prompt=7, new_tokens=4).phases:
        cascade = phase.cascade
        groups = cascade.groups()
        (layers,) = [g for g in groups if g.module == "model.layers.*"]
        assert layers.repeats == 9
        covered = sorted(s + i - g.einsums[0] for g in groups for s in g.starts for i in g.einsums)
        assert covered == list(range(len(cascade)))
        for measure in (lambda e: e.flops, lambda e: e.operations, cascade_bytes(cascade)):
            folded = sum(g.repeats * sum(measure(cascade.einsums[i]) for i in g.einsums) for g in groups)
            assert folded == sum(measure(e) for e in cascade)


def cascade_bytes(cascade: Cascade):  # type: ignore[no-untyped-def]
    return lambda e: sum(cascade.access_bytes(e, a) for a in (*e.inputs, e.output))


def test_tracing_twice_gives_equal_canonical_forms() -> None:
    first, second = (trace(stack(32, 48), torch.zeros(5, 16)) for _ in range(2))
    assert first.canonical() == second.canonical()
    assert first.canonical() != trace(stack(32, 48), torch.zeros(6, 16)).canonical()
    assert first.canonical() != trace(stack(32, 40), torch.zeros(5, 16)).canonical()


def test_canonical_form_forgets_names_and_numbers_of_launches() -> None:
    def cascade(mid: str, kernels: tuple[int, int]) -> Cascade:
        ranks = (("i", 4),)
        make = [("x", mid, kernels[0]), (mid, "y", kernels[1])]
        einsums = tuple(
            Einsum(f"{a}{b}", Op.ELEMENTWISE, ranks, (Access(a, ("i",)),), Access(b, ("i",)), "exp", kernel=k)
            for a, b, k in make
        )
        roles = {"x": Role.INPUT, mid: Role.INTERMEDIATE, "y": Role.OUTPUT}
        return Cascade(einsums, {n: Tensor(n, (4,), "fp32", r) for n, r in roles.items()})

    base = cascade("a", (3, 5)).canonical()
    assert base == cascade("b", (0, 1)).canonical()
    assert base == cascade("b", (-1, -1)).canonical()
    assert base != cascade("b", (2, 2)).canonical()
    renamed = replace(cascade("a", (3, 5)), unknown=("odd",))
    assert base != renamed.canonical()
