"""What a call of a network takes here beyond what it computes, by what runs it: measured on networks of a few numbers.

A network of microseconds spends them on being called: hooks, guards, sessions, arrays made of tensors. That is measured
once a machine, through the very classes that run a tuned network, and kept with the probe's other figures: for each
setting of a method, and for a change together with a compiler, whose program it may break into pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from hasten.cost import estimate
from hasten.cost.folding import copies_of
from hasten.errors import HastenError
from hasten.hardware import Device, remember
from hasten.hardware.device import CallCost
from hasten.hardware.quantity import Quantity
from hasten.hardware.timing import seconds, using_threads
from hasten.methods import Method, apply_all, clash, registry, rewrite_all
from hasten.methods.method import NETWORK
from hasten.methods.network_method import FUSED
from hasten.runtime.network import Inputs, Network, quietly
from hasten.workload.einsum import Op, Role, Workload

EAGER = "eager"
"""What a network that nothing else runs is run by, in `Device.calls`."""
_SOURCE = "measured on this machine by hasten tune, on networks of a few numbers"
# Layers of a kind in the networks whose times tell calls from layers.
_FEW, _MANY = 1, 7
_WIDTH, _ROWS = 32, 4
# How often each is timed, and for how long.
_ROUNDS, _SECONDS = 5, 0.02


def tiny_network(linear: int = _FEW, convolutions: int = _FEW) -> Network:
    """Convolutions of one pixel and linear layers behind them, all of 32 numbers, a ReLU after each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: list[nn.Module] = []
        for _ in range(convolutions):
            parts += [nn.Conv2d(_WIDTH, _WIDTH, 1), nn.ReLU()]
        parts.append(nn.Flatten())
        for _ in range(linear):
            parts += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
        return Network(nn.Sequential(*parts).eval(), Inputs((torch.randn(_ROWS, _WIDTH, 1, 1),)), "a tiny network")


# Of each time that is taken the network's linear layers and convolutions.
_NETWORKS = ((_FEW, _FEW), (_MANY, _FEW), (_FEW, _MANY))


def _split(times: Sequence[float]) -> tuple[float, float, float]:
    """Of the times of `_NETWORKS` what a call takes, a linear layer, and a convolution."""
    both, linear, convolution = times
    step, other = ((t - both) / (_MANY - _FEW) for t in (linear, convolution))
    return both - _FEW * (step + other), step, other


def with_call_costs(device: Device, progress: Callable[[str], None] = lambda message: None) -> Device:
    """This machine's device with what calls of networks take, which is measured where it is not known, and remembered.

    Args:
        device: as `hasten.hardware.probe` gives it for torch's present threads.
        progress: told what is measured.
    """
    wanted = {name: methods for name, methods in _ways().items() if name not in device.calls}
    if not wanted:
        return device
    networks: dict[str, list[Network]] = {}
    with using_threads(torch.get_num_threads()):
        for name, methods in wanted.items():
            progress(f"preparing to time calls: {name}")
            if (made := changed_networks(methods)) is not None:
                networks[name] = made
        progress("timing calls of tiny networks")
        found = {**device.calls, **call_costs(networks)}
    known = device.model_copy(update={"calls": found})
    remember(known)
    return known


def _ways() -> dict[str, Sequence[Method]]:
    """Name -> what a tiny network can be run with: nothing, each method, and a method of each kind with each program of
    the whole that it goes with.

    The first of a kind has the kind's name, others their settings too.
    """
    network = tiny_network()
    kinds = [k for k in registry().values() if NETWORK in k.subjects and k.__module__.startswith("hasten.")]
    usable = {k.name: [m for m in k.variants(network) if m.why_not(network) is None] for k in kinds}
    found: dict[str, Sequence[Method]] = {EAGER: ()}
    for name, methods in usable.items():
        found |= {m.full_name if i else name: (m,) for i, m in enumerate(methods)}
    firsts = [methods[0] for methods in usable.values() if methods and not methods[0].whole]
    programs = {name: some[0] for name, some in found.items() if some and some[0].whole}
    for name, program in programs.items():
        found |= {_pair(m.name, name): (m, program) for m in firsts if not clash((m, program))}
    return found


def _pair(method: str, program: str) -> str:
    """What calls of a program are called whose network a method changed before."""
    return f"{method} + {program}"


def changed_networks(methods: Sequence[Method]) -> list[Network] | None:
    """The networks whose calls are timed, changed by methods; None where one fails.

    Args:
        methods: none for the networks as they are.
    """
    networks = [tiny_network(*layers) for layers in _NETWORKS]
    try:
        return [apply_all(network, methods) for network in networks]
    except HastenError:
        return None


def call_costs(networks: Mapping[str, Sequence[Network]]) -> dict[str, CallCost]:
    """What calls take by what runs them: least of several, in turn, so that a slow moment of the machine meets all.

    Args:
        networks: `changed_networks` by name.
    """
    rounds = [{name: [_least(n) for n in some] for name, some in networks.items()} for _ in range(_ROUNDS)]
    found: dict[str, CallCost] = {}
    for name in networks:
        least = [min(times) for times in zip(*(one[name] for one in rounds), strict=True)]
        call, step, convolution = (Quantity.make(max(0.0, s), "seconds", _SOURCE) for s in _split(least))
        found[name] = CallCost(call=call, step=step, convolution=convolution)
    return found


def _least(network: Network) -> float:
    x = network.inputs.tensors[0]
    with quietly():
        return seconds(lambda: network(x), _SECONDS, 9)


def seconds_beyond(device: Device, methods: Sequence[Method], workload: Workload) -> float:
    """Seconds that a call takes beyond the cost model's for what changed modules do beside their operators: in Python,
    or in an engine's program.

    Args:
        device: which knows calls.
        methods: that the network has.
        workload: what it then computes.
    """
    program = next((m for m in methods if m.whole), None)
    if EAGER not in device.calls or (program is None) == bool(workload.attributes.get(FUSED)):
        return 0.0
    counts = [0, 0]
    for phase in workload.phases:
        for e in phase.cascade.einsums:
            roles = [phase.cascade.tensors[a.tensor].role for a in e.inputs]
            if e.op in (Op.MATMUL, Op.CONV) and Role.WEIGHT in roles:
                counts[e.op is Op.CONV] += copies_of(e)
    base = () if program is None else (program,)
    plain = _beyond(device, base)
    if plain is None:
        return 0.0
    # Its call is in the estimate, and so are an engine's steps.
    total = 0.0 if base else sum(n * s for n, s in zip(counts, plain[1:], strict=True))
    for method in methods:
        if method is not program and (seen := _beyond(device, (method, *base))) is not None:
            call, *steps = (m - p for m, p in zip(seen, plain, strict=True))
            total += call + sum(n * s for n, s in zip(counts, steps, strict=True))
    return total


def _known(device: Device, methods: Sequence[Method]) -> CallCost | None:
    """What calls take with a method, with a program, or with both."""
    if not methods:
        return device.calls[EAGER]
    if len(methods) == 1:
        return device.calls_of(methods[0].full_name)
    method, program = methods
    names = (_pair(method.name, name) for name in (program.full_name, program.name))
    return next((found for name in names if (found := device.calls.get(name)) is not None), None)


def _beyond(device: Device, methods: tuple[Method, ...]) -> tuple[float, float, float] | None:
    """Seconds of a call, and of each layer of both kinds that the cost model does not have; None where no call is
    known."""
    if (known := _known(device, methods)) is None:
        return None
    fused = any(m.whole for m in methods)
    costs = [estimate(w, device, schedule="fused" if fused else "eager") for w in _workloads(methods)]
    _, linear, convolution = _split([cost.latency for cost in costs])
    return float(known.call), known.step - linear, known.convolution - convolution


@functools.lru_cache(maxsize=64)
def _workloads(methods: tuple[Method, ...]) -> tuple[Workload, ...]:
    """What `_NETWORKS` compute with methods."""
    return tuple(rewrite_all(tiny_network(*layers).workload(), methods) for layers in _NETWORKS)
