"""What a user names on the command line, as something to estimate or to run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten.cost import Measurement
from hasten.cost.measuring import spread
from hasten.data import assets
from hasten.errors import HastenError, MissingExtraError
from hasten.files import named_path
from hasten.models import load_network, named
from hasten.models.decoder import is_decoder
from hasten.models.decoder_form import FAMILIES
from hasten.models.description import describe
from hasten.models.language.recurrent import RecurrentLM
from hasten.models.loading.config import build, read_config
from hasten.models.loading.network import read_stored
from hasten.models.loading.weight_types import WeightTypes
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.network import Inputs, Network, file_and_factory, in_evaluation, made_by_file
from hasten.runtime.placement import placed
from hasten.workload import Workload

_LONGEST = 1 << 24
_LARGEST = 1 << 14
_HELP = (
    "give a config.json, a model folder, a .gguf file, an asset, module.py:factory, a published model's name "
    "(mamba-2.8b), or a timm model's name"
)


@dataclass(frozen=True)
class Subject:
    """Something with a workload.

    Args:
        name: for people.
        workload: describes what it computes.
        run: measures it here; None for what has no weights to run.
    """

    name: str
    workload: Callable[[], Workload]
    run: Callable[[int], Measurement] | None


def read_subject(
    text: str,
    prompt: int = 512,
    new_tokens: int = 64,
    batch: int = 1,
    *,
    dtype: str | None = None,
    image: str | tuple[int, int] | None = None,
    context: int = 0,
    where: str = "cpu",
) -> Subject:
    """Finds out what ``text`` names.

    A hub-style ``config.json`` (described without building it), a folder or ``.gguf`` file with a language model or
    an asset's name, ``module.py:factory`` (a function that returns a module, or a module and its inputs: the user's
    own code, which is run), a published model's name (`hasten.models.named`), or the name of a timm model when timm
    is installed.

    Args:
        text: what is named.
        prompt, new_tokens: of a language model's run.
        batch: of a language model's run; of a network images of a call, which a file's function takes as ``batch``.
        dtype: format of the weights, in place of what a configuration or a file says; of no other subjects.
        image: ``HEIGHTxWIDTH`` in pixels, or the two numbers, for configurations of models that see.
        context: tokens in the cache before the prompt, of a configuration or a file.
        where: ``cuda`` runs language models on the GPU that torch sees, with weights in bf16.

    Raises:
        HastenError: none of these, or it is broken.
    """
    for label, value in (("prompt", prompt), ("new-tokens", new_tokens), ("batch", batch)):
        if value < 1:
            raise HastenError(f"{label} must be at least 1")
        if value > _LONGEST:
            raise HastenError(f"{label} must be at most {_LONGEST:,}")
    if not 0 <= context <= _LONGEST:
        raise HastenError(f"context must be 0 to {_LONGEST:,}")
    named_path(text, "the model")  # what no file can be called is nothing else either
    pixels = image_size(image) if isinstance(image, str) else image
    made = file_and_factory(text)
    ours = made is not None
    asked = _Asked(prompt, new_tokens, batch, context, dtype, pixels)
    if where != "cpu" and (ours or not (text.endswith((".json", ".gguf")) or Path(text).exists() or _is_asset(text))):
        raise HastenError(f"--device {where} goes with a language model's file, folder or config.json, not with {text}")
    if text.endswith(".json") and not ours:
        return _from_config(Path(text), asked, where)
    if (Path(text).exists() or text.endswith(".gguf") or _is_asset(text)) and not ours:
        return _from_weights(text, asked, where)
    flags = (("--dtype", dtype is not None), ("--image", image is not None), ("--context", context > 0))
    for flag, given in flags:
        if given:
            raise HastenError(f"{flag} goes with a config.json, a .gguf file or a model folder, not with {text}")
    if made is not None:
        return _from_factory(*made, batch)
    if named.is_named(text):
        return _from_name(text, prompt, new_tokens, batch)
    return _from_timm(text, batch)


def _is_asset(text: str) -> bool:
    return any(a.name == text for a in assets.assets())


def image_size(text: str) -> tuple[int, int]:
    """Height and width in pixels of ``HEIGHTxWIDTH``.

    Raises:
        HastenError: it is something else.

    >>> image_size("448x672")
    (448, 672)
    """
    height, found, width = text.lower().partition("x")
    if not found or not all(n.isascii() and n.isdigit() and 0 < int(n) <= _LARGEST for n in (height, width)):
        raise HastenError(f"an image is given as HEIGHTxWIDTH in pixels, each 1 to {_LARGEST:,}, not {text[:40]!r}")
    return int(height), int(width)


@dataclass(frozen=True)
class _Asked:
    """What is asked of a language model, as `describe` takes it."""

    prompt: int
    new_tokens: int
    batch: int
    context: int
    dtype: str | None
    image: tuple[int, int] | None

    def describe(self, config: Any, name: str, weights: WeightTypes | None = None) -> Workload:
        """The workload of a configuration."""
        weights = None if self.dtype else weights
        return describe(config, name=name, weights=weights, **vars(self))


def _from_config(path: Path, asked: _Asked, where: str = "cpu") -> Subject:
    config = read_config(path)
    # A hub's files are all called config.json: their folder says which one it is.
    name = path.resolve().parent.name if path.stem == "config" else path.stem

    def run(runs: int) -> Measurement:
        network = build(config)
        if type(network).__name__ not in FAMILIES:
            raise HastenError(f"a config of {config.model_type!r} can be estimated, not run: {', '.join(FAMILIES)} can")
        network = type(network)(config)
        model = placed(LanguageModel(network, name=name), where)
        return model.measure(asked.prompt, asked.new_tokens, asked.batch, runs)

    return Subject(name, lambda: asked.describe(config, name), run)


def _from_weights(text: str, asked: _Asked, where: str = "cpu") -> Subject:
    stored = read_stored(text)

    def run(runs: int) -> Measurement:
        loaded = load_network(text)
        model = placed(LanguageModel(loaded.network, name=loaded.name), where)
        model.check_fits(asked.prompt + asked.new_tokens)
        return model.measure(asked.prompt, asked.new_tokens, asked.batch, runs)

    return Subject(stored.name, lambda: asked.describe(stored.config, stored.name, stored.types), run)


def _from_name(name: str, prompt: int, new_tokens: int, batch: int) -> Subject:
    """A published size: described in bf16 without weights, run with random ones."""
    model = named.build(name)
    if isinstance(model, RecurrentLM):

        def run(runs: int) -> Measurement:
            whole = named.build(name, device="cpu")
            assert isinstance(whole, RecurrentLM)
            return time_generation(whole, name, prompt, new_tokens, batch, runs)

        return Subject(name, lambda: model.workload(prompt, new_tokens, batch, name), run)
    if is_decoder(model):
        described = LanguageModel(model, name=name)
        described.check_fits(prompt + new_tokens)
        return Subject(
            name,
            lambda: described.workload(prompt, new_tokens, batch),
            lambda runs: LanguageModel(named.build(name, device="cpu"), name=name).measure(
                prompt, new_tokens, batch, runs
            ),
        )
    inputs = model.example_inputs(batch)  # type: ignore[operator]
    return _of_module(name, model, inputs)


def time_generation(
    model: RecurrentLM[Any], name: str, prompt: int, new_tokens: int, batch: int = 1, runs: int = 3
) -> Measurement:
    """Seconds of reading a prompt and of making ``new_tokens``, after one warm-up; tokens are random.

    Args:
        model: what generates.
        name: for people.
        prompt, new_tokens, batch: as on the command line.
        runs: counted repetitions.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocabulary, (batch, prompt), generator=generator)
    times: dict[str, list[float]] = {"prefill": [], "decode": []}
    for run in range(runs + 1):
        started = time.perf_counter()
        tokens = model.stream(ids, new_tokens + 1)
        next(tokens)
        prefilled = time.perf_counter()
        for _ in tokens:
            pass
        if run:
            times["prefill"].append(prefilled - started)
            times["decode"].append(time.perf_counter() - prefilled)
    spreads = {phase: spread(seconds) for phase, seconds in times.items()}
    held = sum(p.nbytes for p in model.parameters()) + sum(
        t.nbytes for t in model.state_tensors(model.new_state(batch)).values()
    )
    return Measurement(
        name,
        "this machine",
        spreads,
        float(held),
        {
            "prefill_tokens_per_second": batch * prompt / spreads["prefill"].median,
            "decode_tokens_per_second": batch * new_tokens / spreads["decode"].median,
        },
    )


def _from_factory(path: Path, factory: str, batch: int) -> Subject:
    network, inputs = made_by_file(path, factory, batch if batch > 1 else None)
    in_evaluation(network)
    return of_network(Network(network, inputs, f"{path.stem}:{factory}"))


def of_network(network: Network) -> Subject:
    """A network with example inputs."""
    return Subject(network.name, network.workload, lambda runs: network.measure(max(3, runs), warmup=2))


def _of_module(name: str, module: nn.Module, inputs: Any) -> Subject:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return of_network(Network(module, Inputs(given), name))


def _from_timm(name: str, batch: int) -> Subject:
    try:
        import timm
    except ImportError as error:
        if "/" in name or name.startswith("."):
            raise HastenError(f"{name} is nothing that hasten can read: {_HELP}") from None
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise HastenError(
                f"{name} is nothing that hasten can read: {_HELP}; {MissingExtraError('timm', 'vision')}"
            ) from None
        raise HastenError(f"timm cannot be imported here: {error}") from None
    if not timm.is_model(name):
        raise HastenError(f"timm has no model {name!r}, and nothing else is called so: {_HELP}")
    module = timm.create_model(name, pretrained=False).eval()
    size = module.default_cfg.get("input_size", (3, 224, 224))
    return _of_module(name, module, torch.zeros(batch, *size))
