"""The rows of `measurements.toml`, and the workload that each one measured."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hasten.hardware import Device, load_device
from hasten.hardware.device import several_of
from hasten.models.description import describe
from hasten.models.loading.config import config_of
from hasten.workload import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload, trace
from hasten.workload.training import training
from published.networks import NETWORKS, network

FOLDER = Path(__file__).parent
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SALT = 16
"""Of the split; see `side`."""


@dataclass(frozen=True)
class Measured:
    """A row: what was measured, on what, and what the source says of it."""

    id: str
    model: str
    on: str
    format: str
    schedule: str
    devices: int
    phase: str
    value: float
    unit: str
    kind: str
    model_as_named: str
    device_as_named: str
    format_as_named: str
    framework: str
    source: str
    address: str
    shared: str = ""
    scope: str = ""
    suspect: str = ""
    batch: int = 1
    prompt_tokens: int = 0
    generated_tokens: int = 0
    context_tokens: int = 0
    image_size: int = 0
    recomputed: bool = False
    note: str = ""

    @property
    def left_out(self) -> str:
        """Why the row is not compared; empty where it is."""
        if self.suspect:
            return f"suspect: {self.suspect}"
        if self.scope not in ("", "phase_only", "end_to_end_static_batch"):
            return f"scope: {self.scope}"
        return "" if self.model else "no configuration was found"

    @property
    def side(self) -> str:
        """``fitted`` or ``judged``: by the hash of the source's name, so that no source is on both sides.

        The salt of the hash is the first of 0, 1, 2, ... that leaves at least 60 rows on at least 20 devices to judge,
        and on both sides a row of each phase and of each family of devices that two sources or more speak of: no error
        has a say. (Salt 0 meets all of it but the families: Apple's GPUs would be judged with no row to derive from. It
        was given up when that was seen, its judged half's median error of 27 % known and no row of it looked at.)
        """
        digest = hashlib.sha256(f"{SALT}{self.source}".encode()).digest()
        return "judged" if digest[0] % 2 else "fitted"

    @property
    def seconds(self) -> float:
        """Of one step, prompt, pass or request, as measured."""
        if self.unit in ("ms", "ms/token"):
            return self.value / 1e3
        if self.unit == "s":
            return self.value
        return self.items / self.value

    @property
    def items(self) -> float:
        """What the unit counts that one step, prompt, pass or request makes."""
        if self.unit == "denoising steps/s":
            return 1
        if self.unit == "images/s":
            return self.batch
        if self.scope == "end_to_end_static_batch":
            return self.batch * self.generated_tokens
        return self.batch * (1 if self.phase == "decode" else self.prompt_tokens)


@cache
def rows() -> tuple[Measured, ...]:
    """All rows."""
    return tuple(Measured(**row) for row in tomllib.loads((FOLDER / "measurements.toml").read_text("utf-8"))["row"])


def device_of(row: Measured) -> Device:
    """What a row was measured on: several devices where they share each product."""
    device = load_device(row.on)
    return several_of(device, row.devices) if row.shared == "tensor" else device


@cache
def configs() -> dict[str, Any]:
    """Name -> a configuration as published, and where."""
    return json.loads((FOLDER / "configs.json").read_text("utf-8"))


def workload_of(row: Measured) -> Workload:
    """What a row measured; where data were divided over devices, one device's part."""
    if row.phase == "train":
        return _training(row)
    if row.model in NETWORKS:
        prompt = row.phase == "prefill"
        name, batch = (f"{row.model} prompt", row.prompt_tokens) if prompt else (row.model, row.batch)
        return _network(name, batch, row.format)
    generated = row.generated_tokens or 128
    prompt = max(row.prompt_tokens, 1) if row.phase != "decode" or not row.context_tokens else row.context_tokens
    return _language(row.model, row.format, prompt, generated, row.batch)


@cache
def _language(model: str, dtype: str, prompt: int, generated: int, batch: int) -> Workload:
    config = config_of(dict(configs()[model]["config"]), FOLDER / "configs.json")
    found = describe(config, prompt=prompt, new_tokens=generated, batch=batch, dtype=dtype, name=model)
    return _narrow_cache(found) if dtype == "fp8" else found


def _narrow_cache(workload: Workload) -> Workload:
    """With keys and values in fp8, as engines keep them where products are in fp8: the batches fit in no other way."""

    def narrow(cascade: Cascade) -> Cascade:
        tensors = {n: replace(t, dtype="fp8") if t.role is Role.STATE else t for n, t in cascade.tensors.items()}
        return Cascade(cascade.einsums, tensors)

    phases = tuple(replace(phase, cascade=narrow(phase.cascade)) for phase in workload.phases)
    return replace(workload, phases=phases, state={name: size // 2 for name, size in workload.state.items()})


@cache
def _network(name: str, batch: int, dtype: str) -> Workload:
    module, inputs = network(name, batch, TORCH[dtype])
    return trace(module, *inputs, name=name)


def _training(row: Measured) -> Workload:
    own = row.batch // row.devices
    if row.model in NETWORKS:
        return training(_network(row.model, own, row.format))
    micro = max(1, min(own, 2))
    found = _language(row.model, "bf16", row.prompt_tokens, 1, micro)
    cascade = _all_logits(found.phases[0].cascade, configs()[row.model]["config"], micro * row.prompt_tokens)
    if row.format == "fp8":
        narrow = {n: replace(t, dtype="fp8") if t.dtype == "bf16" else t for n, t in cascade.tensors.items()}
        cascade = Cascade(cascade.einsums, narrow)
    return training(replace(found, phases=(Phase("forward", cascade, own // micro),)), recomputed=row.recomputed)


def _all_logits(cascade: Cascade, config: dict[str, Any], tokens: int) -> Cascade:
    """With the output head for every token, which a loss needs."""
    width, words = config["hidden_size"], config["vocab_size"]
    tensors = {
        "loss.x": Tensor("loss.x", (tokens, width), "bf16", Role.INTERMEDIATE),
        "loss.w": Tensor("loss.w", (width, words), "bf16", Role.WEIGHT),
        "loss.y": Tensor("loss.y", (tokens, words), "bf16", Role.OUTPUT),
    }
    head = Einsum(
        "loss.head",
        Op.MATMUL,
        (("m", tokens), ("n", words), ("k", width)),
        (Access("loss.x", ("m", "k")), Access("loss.w", ("k", "n"))),
        Access("loss.y", ("m", "n")),
        reduce="sum",
        kernel=-1,
    )
    return Cascade((*cascade.einsums, head), {**cascade.tensors, **tensors})
