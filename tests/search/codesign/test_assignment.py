"""Layers to sub-accelerators: against brute force, and in the cases whose answer is known."""

import itertools
import math
import random

import pytest

from hasten.errors import HastenError
from hasten.search.codesign.assignment import assign, best_assignment, best_order, makespan


def drawn(rng, lengths, units):
    return [[[rng.uniform(1, 10) for _ in range(units)] for _ in range(n)] for n in lengths]


def test_against_all_assignments():
    rng = random.Random(5)
    ratios = []
    for _ in range(60):
        units = rng.choice((2, 3))
        lengths = rng.choice(([6], [4, 3], [3, 2, 2]))
        times, energies = drawn(rng, lengths, units), drawn(rng, lengths, units)
        fastest = [[row.index(min(row)) for row in network] for network in times]
        deadline = rng.uniform(0.6, 1.1) * makespan(times, fastest)
        best, ours = best_assignment(times, energies, deadline), assign(times, energies, deadline)
        assert makespan(times, ours.units) == ours.makespan
        if best.makespan > deadline:
            assert ours.makespan >= best.makespan - 1e-9
            continue
        assert ours.makespan <= deadline
        assert ours.energy >= best.energy - 1e-9
        ratios.append(ours.energy / best.energy)
    assert len(ratios) > 10
    assert sum(ratios) / len(ratios) <= 1.08


def test_one_unit_is_the_sum_of_all():
    rng = random.Random(1)
    times, energies = drawn(rng, [4, 3], 1), drawn(rng, [4, 3], 1)
    found = assign(times, energies)
    assert found.makespan == pytest.approx(sum(row[0] for network in times for row in network))
    assert found.energy == pytest.approx(sum(row[0] for network in energies for row in network))


def test_without_a_deadline_each_layer_is_where_it_costs_least():
    rng = random.Random(2)
    times, energies = drawn(rng, [9, 8], 3), drawn(rng, [9, 8], 3)
    found = assign(times, energies, math.inf)
    assert found.energy == pytest.approx(sum(min(row) for network in energies for row in network))


def test_two_equal_units_halve_two_equal_networks():
    times = [[[2.0, 2.0], [3.0, 3.0], [1.0, 1.0]]] * 2
    assert makespan(times, [[0] * 3] * 2) == 12
    assert assign(times, times, 6.0).makespan == 6
    # Layers of one network never overlap, whatever units there are.
    assert assign(times[:1], times[:1], 0.0).makespan == 6


def test_precedence_and_exclusion():
    # The second network waits for the unit, then its next layer runs elsewhere beside the first's.
    times = [[[4, 9], [4, 9]], [[1, 9], [9, 5]]]
    assert makespan(times, [[0, 0], [0, 1]]) == 10
    with pytest.raises(HastenError, match="unit"):
        assign([[[1, 2], [1]]], [[[1, 2], [1]]])
    with pytest.raises(HastenError, match="too many"):
        best_assignment([[[1, 2]] * 30], [[[1, 2]] * 30])


def test_the_best_order_is_not_the_list_schedule():
    # Two jobs through two units in turn: by Johnson's rule the short first step goes first, and the last ends at 7.
    times = [[[5, 5], [1, 1]], [[1, 1], [5, 5]]]
    energies = [[[0, 1], [1, 0]]] * 2  # so that layers run where they must
    units = ((0, 1), (0, 1))
    assert makespan(times, units) == 11
    assert best_order(times, units) == (7, (1, 0, 1, 0))
    found = best_assignment(times, energies)
    assert (found.units, found.makespan, found.energy) == (units, 7, 0)
    assert makespan(times, found.units, found.order) == 7
    assert best_assignment(times, energies, 7).energy == 0
    assert best_assignment(times, energies, 6).energy == 2  # each network by itself on a unit
    assert best_assignment(times, energies, 5).makespan == 6
    with pytest.raises(HastenError, match="as often as"):
        makespan(times, units, (0, 0, 0, 1))


def test_the_best_assignment_by_all_placements_and_all_interleavings():
    rng = random.Random(3)
    better = 0
    for _ in range(12):
        units, lengths = rng.choice(((2, [3, 2]), (2, [2, 1, 1]), (3, [2, 1]), (2, [4])))
        times, energies = (
            [[[float(rng.randint(0, 6)) for _ in range(units)] for _ in range(n)] for n in lengths] for _ in "te"
        )
        orders = set(itertools.permutations([n for n, count in enumerate(lengths) for _ in range(count)]))
        rows = []
        for flat in itertools.product(range(units), repeat=sum(lengths)):
            rest = iter(flat)
            placed = [list(itertools.islice(rest, n)) for n in lengths]
            end = min(makespan(times, placed, order) for order in orders)
            assert best_order(times, placed)[0] == end
            assert best_order(times, placed, end - 0.5) == (math.inf, ())
            better += end < makespan(times, placed)
            energy = sum(energies[n][i][u] for n, row in enumerate(placed) for i, u in enumerate(row))
            rows.append((energy, end))
        soonest = min(end for _, end in rows)
        for deadline in (math.inf, soonest, 1.5 * soonest + 1):
            found = best_assignment(times, energies, deadline)
            assert (found.energy, found.makespan) == min(r for r in rows if r[1] <= deadline)
        assert best_assignment(times, energies, soonest - 0.5).makespan == soonest
    assert better > 0
