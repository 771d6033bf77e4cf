"""Models of language and vision: an image once through the vision tower, then its tokens before a prompt's.

The tower is the model's own, traced on one image a sequence; how many tokens an image is, it says itself. Where
patches lie and how long windows are is worked out on real whole numbers, beside the tensors that are traced.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from hasten.errors import HastenError
from hasten.models.description.decoders import describe_decoder
from hasten.models.description.encoders import FLOATS, image_shape, number
from hasten.models.description.repeats import repeated_layers
from hasten.models.loading.config import build_as, one_line, quiet
from hasten.workload import Phase, Traced, Workload, trace_cascade
from hasten.workload.dispatch import Tracer

USUAL = (448, 448)  # pixels, of models that take images of any size
_INTEGERS = (torch.int64, torch.int32, torch.bool)
_MADE = ("arange", "full", "zeros", "ones", "scalar_tensor", "empty", "lift_fresh", "_to_copy", "tensor")


def describe_vision_language(
    config: Any,
    kind: Any,
    *,
    prompt: int,
    new_tokens: int,
    batch: int = 1,
    context: int = 0,
    dtype: str = "fp32",
    cache_dtype: str | None = None,
    image: tuple[int, int] | None = None,
    name: str = "",
) -> Workload:
    """The phases ``vision`` (an image of each sequence), ``prefill`` (its tokens and the prompt's) and ``decode``.

    Args:
        config: its configuration.
        kind: its class in transformers.
        prompt: tokens of text of each prompt, beside those of the image.
        new_tokens, batch, context: see `hasten.models.description.describe`.
        dtype, cache_dtype: of weights and activations; of the cache.
        image: height and width in pixels, where the configuration does not fix them.
        name: for people.

    Raises:
        HastenError: a tower that cannot be traced, or more tokens than the model has positions.
    """
    seen, tokens, words = _seen(config, kind, batch, dtype, image)
    told = describe_decoder(
        config, prompt=prompt + tokens, new_tokens=new_tokens, batch=batch, context=context, dtype=dtype,
        cache_dtype=cache_dtype, name=name, build=lambda c, implementation, d: build_as(c, implementation, d, kind),
    )  # fmt: skip
    note = f"{words}: {tokens} tokens before the {prompt} of the prompt"
    return replace(
        told,
        phases=(Phase("vision", seen.cascade), *told.phases),
        weights={**seen.weights, **told.weights},
        attributes={**told.attributes, "image_tokens": tokens},
        notes=(note, *told.notes),
    )


def _seen(config: Any, kind: Any, batch: int, dtype: str, image: tuple[int, int] | None) -> tuple[Traced, int, str]:
    """The tower's call for one image a sequence, the tokens of each, and a note."""
    problem: BaseException | None = None
    for implementation in ("sdpa", "eager"):
        try:
            model = build_as(config, implementation, FLOATS[dtype], kind)
            shape, fixed, words = _image(model, batch, image)
            found, tokens = _traced(model, shape, FLOATS[dtype], fixed)
            return found, tokens // batch, words
        except Exception as error:  # whatever a class makes of its configuration
            problem = error
    raise HastenError(f"no description of the vision tower of {kind.__name__}: {one_line(problem or HastenError(''))}")


def _traced(model: Any, shape: tuple[int, ...], dtype: torch.dtype, fixed: dict[str, Any]) -> tuple[Traced, int]:
    """The call of the tower, and the tokens that come out of it."""
    held: dict[str, Any] = {}

    @contextmanager
    def within(tracer: Tracer) -> Iterator[None]:
        held["tracer"] = tracer
        with quiet(), repeated_layers(model, tracer, None):
            yield

    def tower(pixel_values: Tensor) -> list[Tensor]:
        with _RealIndices(held["tracer"]):
            found = _looked_at(model, pixel_values, fixed)
        features = getattr(found, "pooler_output", None)
        leaves = [t for t in tree_flatten(found if features is None else features)[0] if isinstance(t, Tensor)]
        held["tokens"] = sum(t.numel() // t.shape[-1] for t in leaves)
        return leaves

    traced = trace_cascade(tower, module=model, prepare=lambda: ((torch.zeros(shape, dtype=dtype),), {}), within=within)
    return traced, int(held["tokens"])


def _looked_at(model: Any, pixels: Tensor, fixed: dict[str, Any]) -> Any:
    """What a model's tower makes of an image."""
    if not _in_tiles(model):
        return model.get_image_features(pixels, **fixed)
    # The model first looks which tiles are black, and leaves those out.
    inner = model.model
    seen = inner.vision_model(pixel_values=pixels.flatten(0, 1), patch_attention_mask=None, return_dict=True)
    return inner.connector(seen.last_hidden_state)


def _in_tiles(model: Any) -> bool:
    return type(model).__name__.startswith(("Idefics3", "SmolVLM"))


class _RealIndices(TorchDispatchMode):
    """Within, whole numbers that follow from sizes alone are computed, so that shapes may depend on them."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if all(_real(t) for t in tensors) if tensors else _counts(func, args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            mask = args[1][0] if len(args[1]) == 1 else None
            if mask is not None and mask.dtype is torch.bool:
                if not _real(mask):  # made of pixels: where nothing is padding, it leaves all
                    return args[0].reshape(-1, *args[0].shape[mask.dim() :])
                with _disable_current_modes():
                    args = (args[0], list(mask.nonzero(as_tuple=True)))
                tensors = [t for t in tree_flatten(args)[0] if isinstance(t, Tensor)]
        if any(_real(t) for t in tensors):
            twin = self._tracer.fakes.of
            args, kwargs = tree_map(lambda t: twin(t) if isinstance(t, Tensor) and _real(t) else t, (args, kwargs))
        return func(*args, **kwargs)


def _real(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu"


def _counts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator makes whole numbers out of plain ones, such as places of patches."""
    if func.__name__.split(".")[0] not in _MADE:
        return False
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype in _INTEGERS
    return func.__name__.startswith("arange") and all(isinstance(a, int) for a in args)


def _image(model: Any, batch: int, image: tuple[int, int] | None) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Shape of the pixels that a model's tower takes, what it is given beside them, and a note.

    Raises:
        HastenError: an image smaller than a patch.
    """
    vision, takes = model.config.vision_config, inspect.signature(model.get_image_features).parameters
    patch = number(vision, "patch_size")
    if "image_grid_thw" in takes:
        merge = number(vision, "spatial_merge_size", "merge_size") or 1
        height, width = image or USUAL
        rows, columns = (max(1, round(n / (patch * merge))) * merge for n in (height, width))
        channels = number(vision, "in_channels", "in_chans", "num_channels") or 3
        size = channels * (number(vision, "temporal_patch_size") or 1) * patch * patch
        grid = torch.tensor([[1, rows, columns]] * batch)
        words = f"an image of {rows * patch} x {columns * patch} pixels, {'as asked' if image else 'as is usual'}"
        return (batch * rows * columns, size), {"image_grid_thw": grid}, words
    if "image_position_ids" in takes:
        return _positioned(vision, number(model.config, "vision_soft_tokens_per_image") or 256, patch, batch, image)
    channels, height, width, words = image_shape(model.config, image)
    fixed: dict[str, Any] = {}
    if "image_sizes" in takes and _any_size(model):
        height, width = ((max(1, n // patch) * patch) for n in image or (height, width))
        words = f"an image of {height} x {width} pixels, {'as asked' if image else 'as the configuration says'}"
        fixed["image_sizes"] = torch.tensor([[height, width]] * batch)
    elif "image_sizes" in takes and getattr(model.config, "image_grid_pinpoints", None):
        # The whole image, scaled down, and tiles of it.
        pixels = torch.tensor(list(image or (height, width)))
        tiles = int(image_size_to_num_patches(pixels, model.config.image_grid_pinpoints, height))
        fixed["image_sizes"] = pixels[None].repeat(batch, 1)
        words = f"an image of {int(pixels[0])} x {int(pixels[1])} pixels as {tiles} of {height} x {width}"
        return (batch, tiles, channels, height, width), fixed, words
    if _in_tiles(model):
        return (batch, 1, channels, height, width), fixed, words
    return (batch, channels, height, width), fixed, words


def _any_size(model: Any) -> bool:
    return str(getattr(model.config.vision_config, "model_type", "")) == "pixtral"


def _positioned(
    vision: Any, most: int, patch: int, batch: int, image: tuple[int, int] | None
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Patches with their places, pooled to as many tokens as the configuration says (Gemma 4)."""
    pool, most = number(vision, "pooling_kernel_size") or 1, number(vision, "default_output_length") or most
    height, width = image or (1, 1)
    share = math.sqrt(most / (height * width))
    rows, columns = (max(1, math.floor(n * share)) * pool for n in (height, width))
    places = torch.cartesian_prod(torch.arange(columns), torch.arange(rows)).reshape(1, -1, 2).repeat(batch, 1, 1)
    shape = (batch, rows * columns, 3 * patch * patch)
    words = f"an image scaled to {rows * patch} x {columns * patch} pixels"
    return shape, {"image_position_ids": places}, words
