"""Models that run once: encoders of text, images and sound, classifiers, networks with two towers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.description.repeats import repeated_layers
from hasten.models.loading.config import build_as, one_line, quiet
from hasten.workload import Phase, Traced, Workload, trace_cascade
from hasten.workload.dispatch import Tracer

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SECONDS = 30  # of sound, where a model takes waves of any length
RATE = 16_000


def describe_encoder(
    config: Any,
    kind: Any,
    *,
    prompt: int,
    batch: int = 1,
    dtype: str = "fp32",
    image: tuple[int, int] | None = None,
    name: str = "",
) -> Workload:
    """The phase ``forward`` of a model that runs once.

    Args:
        config: its configuration.
        kind: its class in transformers.
        prompt: tokens of text, where it takes text.
        batch: sequences, images, or pieces of sound.
        dtype: of weights and activations.
        image: height and width in pixels, where it takes images and its configuration does not fix them.
        name: for people.

    Raises:
        HastenError: it takes something else, more than it has positions for, or cannot be traced.
    """
    takes = inspect.signature(kind.forward).parameters
    if "input_ids" in takes and "pixel_values" not in takes:  # beside an image a text is cut to its positions
        check_positions(config, prompt)
    found, notes = traced(
        kind, config, dtype, lambda model: (model, inputs_of(model, prompt, batch, FLOATS[dtype], image))
    )
    notes = ("one forward pass: no tokens are made", *notes)
    attributes: dict[str, int | float | str] = {"prompt": prompt, "batch": batch, "dtype": dtype}
    return Workload(name or config.model_type, (Phase("forward", found.cascade),), found.weights, {}, attributes, notes)


def traced(
    kind: Any,
    config: Any,
    dtype: str,
    called: Callable[[Any], tuple[Any, tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], tuple[str, ...]]]],
) -> tuple[Traced, tuple[str, ...]]:
    """One call of a model, traced with the first attention implementation that its class has.

    Args:
        called: the model -> what is called, and the shapes and types of its arguments with notes on them.
    """
    problem: BaseException | None = None
    for implementation in ("sdpa", "eager"):
        try:
            model = build_as(config, implementation, FLOATS[dtype], kind)
            target, (shapes, notes) = called(model)
            return trace_once(target, model, shapes), notes
        except Exception as error:  # whatever a class makes of its configuration
            problem = error
    raise HastenError(f"no description of {kind.__name__}: {one_line(problem or HastenError(''))}")


def trace_once(
    target: Any, model: nn.Module, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], cache: Any = None
) -> Traced:
    """One call of ``target`` with arguments of these shapes and types; equal layers are traced once."""

    @contextmanager
    def within(tracer: Tracer) -> Iterator[None]:
        with quiet(), repeated_layers(model, tracer, cache):
            yield

    def prepare() -> tuple[tuple[Any, ...], dict[str, Tensor]]:
        return (), {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}

    return trace_cascade(target, module=model, prepare=prepare, within=within)


def check_positions(config: Any, length: int) -> None:
    """Whether a model has ``length`` positions.

    Raises:
        HastenError: it has fewer.
    """
    limit = number(_of_text(config), "max_position_embeddings", "n_positions", "max_sequence_length")
    if limit and length > limit:
        raise HastenError(f"{length} tokens are more than the model's {limit} positions: shorten the prompt")


def inputs_of(
    model: Any, prompt: int, batch: int, dtype: torch.dtype, image: tuple[int, int] | None
) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], tuple[str, ...]]:
    """Shapes and types of what a model's ``forward`` takes, by name, and notes on them.

    Raises:
        HastenError: it takes something that hasten has no size for.
    """
    config = model.config
    takes = inspect.signature(model.forward).parameters
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    notes: list[str] = []
    if "input_ids" in takes:
        limit = number(_of_text(config), "max_position_embeddings")
        found["input_ids"] = ((batch, min(prompt, limit) if limit else prompt), torch.int64)
    if "pixel_values" in takes:
        channels, height, width, words = image_shape(config, image)
        found["pixel_values"] = ((batch, channels, height, width), dtype)
        notes.append(words)
    if "input_values" in takes:
        found["input_values"] = ((batch, *_sound(config)), dtype)
        notes.append(_heard(config))
    elif "input_features" in takes:
        found["input_features"] = ((batch, *_spectrum(config)), dtype)
        notes.append(_heard(config))
    main = model.main_input_name
    if main not in found:
        listed = "text, images, waves and spectra"
        raise HastenError(f"{type(model).__name__} takes {main}, which has no size here: {listed} have")
    return found, tuple(notes)


def image_shape(config: Any, image: tuple[int, int] | None) -> tuple[int, int, int, str]:
    """Channels, height and width of the image that a model takes, and a note.

    Raises:
        HastenError: neither the configuration nor the user gives a size, or the two differ.
    """
    part = getattr(config, "vision_config", None) or config
    channels = number(part, "num_channels", "in_channels", "in_chans") or 3
    said = next((v for n in ("image_size", "img_size", "input_size") if (v := getattr(part, n, None))), None)
    fixed = (said, said) if isinstance(said, int) else tuple(said) if isinstance(said, list | tuple) else None
    if fixed is not None and len(fixed) == 2:
        words = f"an image of {fixed[0]} x {fixed[1]} pixels, as the configuration says"
        if image is not None and image != fixed:
            words += f": one of {image[0]} x {image[1]} is resized to it"
        return channels, int(fixed[0]), int(fixed[1]), words
    height, width = image or (224, 224)
    return channels, height, width, f"an image of {height} x {width} pixels, as {'asked' if image else 'is usual'}"


def _of_text(config: Any) -> Any:
    """The part of a configuration that is of text; all of it where several are."""
    try:
        return config.get_text_config()
    except ValueError:
        return config


def number(config: Any, *names: str) -> int:
    """The first of ``names`` that is a whole number; 0 where none is."""
    return next((v for n in names if isinstance(v := getattr(config, n, None), int)), 0)


def _sound(config: Any) -> tuple[int, ...]:
    if getattr(config, "max_length", None) and getattr(config, "num_mel_bins", None):
        return int(config.max_length), int(config.num_mel_bins)
    return (SECONDS * RATE,)


def _spectrum(config: Any) -> tuple[int, ...]:
    bins = number(config, "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim") or 80
    if config.model_type == "whisper":
        return bins, 2 * config.max_source_positions  # two frames a position
    frames = SECONDS * 100 if bins <= 128 else SECONDS * 50
    return (frames, bins)


def _heard(config: Any) -> str:
    if getattr(config, "max_length", None) and getattr(config, "num_mel_bins", None):
        return f"a spectrum of {config.max_length} frames, as the configuration says"
    return f"{SECONDS} s of sound"
