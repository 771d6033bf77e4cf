"""Sub-networks as the authors of Once-for-All publish them (github.com/mit-han-lab/once-for-all): no weights, only what
they are.

Two forms: lists of kernels (``ks``), expansions (``e``) and depths (``d``) with a resolution (``r``), as searches and
tables have them; and ``net.config``, a list of blocks, beside ``run.config`` with the image's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import named_path, parse_json, read_bytes
from hasten.models.vision.once_for_all import Architecture, OFAConfig
from hasten.nn.convolutional import make_divisible

MULTIPLIERS = (1.0, 1.2)
"""Of the widths of the published networks."""


def read_sub_network(path: str | Path, resolution: int | None = None) -> tuple[OFAConfig, Architecture]:
    """A published sub-network, and the space it is of: the paper's, with other widths, classes or resolutions.

    Args:
        path: a folder with ``net.config`` and ``run.config``, or a JSON file of either form.
        resolution: of the images, where the file does not say it; the largest of the paper's when None.

    Raises:
        HastenError: no such file, or it describes no sub-network of the MobileNetV3 space.
    """
    path = named_path(path)
    if path.is_dir():
        resolution = resolution or _read(path / "run.config").get("image_size")
        path = path / "net.config"
    return sub_network(_read(path), resolution)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = parse_json(read_bytes(path))
    except ValueError:
        raise HastenError(f"{path} is not JSON: give a published net.config, or lists of ks, e, d and r") from None
    if not isinstance(found, Mapping):
        raise HastenError(f"{path} holds no description of a network: it begins with {str(found)[:40]!r}")
    return found


def sub_network(data: Mapping[str, Any], resolution: int | None = None) -> tuple[OFAConfig, Architecture]:
    """As `read_sub_network`, of what was read.

    Raises:
        HastenError: as there.
    """
    try:
        if "blocks" in data:
            return _of_blocks(data, resolution)
        given = data.get("r", resolution)
        size = given[0] if isinstance(given, list) else given
        config = _sized(OFAConfig(), size)
        return config, config.architecture(list(data["ks"]), list(data["e"]), list(data["d"]), _size(OFAConfig(), size))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise HastenError(
            f"this describes no published sub-network: it needs blocks, or ks, e, d ({type(error).__name__}: {error})"
        ) from None


def _size(config: OFAConfig, resolution: int | None) -> int:
    return config.resolutions[-1] if resolution is None else resolution


def _sized(config: OFAConfig, resolution: int | None) -> OFAConfig:
    """The space with this resolution among its own: some were published at others."""
    size = _size(config, resolution)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise HastenError(f"the resolution of a sub-network is a number of pixels up to 4096: got {size!r:.40}")
    return replace(config, resolutions=tuple(sorted({*config.resolutions, size})))


def _of_blocks(data: Mapping[str, Any], resolution: int | None) -> tuple[OFAConfig, Architecture]:
    if data.get("name") not in (None, "MobileNetV3", "MobileNetV3Large", "OFAMobileNetV3"):
        raise HastenError(f"{data['name']} is of another space: only sub-networks of MobileNetV3's are read")
    # Older files call the block's convolution by another name.
    blocks = [b["conv"] if "conv" in b else b["mobile_inverted_conv"] for b in data["blocks"]]
    first, *elastic = blocks
    begins = [b["shortcut"] is None for b in data["blocks"][1:]]
    config = replace(OFAConfig(), classes=int(data["classifier"]["out_features"]))
    config = replace(config, multiplier=_multiplier(config, int(first["out_channels"])))
    depths: list[int] = []
    kernels = [config.kernels[0]] * config.blocks
    expands = [config.expands[0]] * config.blocks
    for block, begin in zip(elastic, begins, strict=True):
        if begin:
            depths.append(0)
        stage = len(depths) - 1
        if not 0 <= stage < len(config.widths) or depths[-1] == config.depths[-1]:
            raise HastenError("more stages or blocks than the paper's space has: this is another network")
        at = stage * config.depths[-1] + depths[-1]
        kernels[at], expands[at] = int(block["kernel_size"]), _expansion(config, block)
        _same(config, block, stage, depths[-1])
        depths[-1] += 1
    config = _sized(config, resolution)
    return config, config.architecture(kernels, expands, depths, _size(config, resolution))


def _multiplier(config: OFAConfig, width: int) -> float:
    found = [m for m in MULTIPLIERS if make_divisible(config.stem * m) == width]
    if not found:
        raise HastenError(f"a first block of {width} channels is none of the published widths")
    return found[0]


def _expansion(config: OFAConfig, block: Mapping[str, Any]) -> int:
    """The ratio it was made with; files of trained networks may keep the number of channels alone."""
    inputs, middle, ratio = int(block["in_channels"]), block.get("mid_channels"), block.get("expand_ratio")
    if middle is None:
        middle = make_divisible(round(inputs * ratio))  # type: ignore[operator]
    found = [e for e in config.expands if make_divisible(round(inputs * e)) == middle]
    if not found:
        raise HastenError(f"{middle} channels within a block of {inputs} are no expansion of the space")
    return ratio if ratio in found else found[0]


def _same(config: OFAConfig, block: Mapping[str, Any], stage: int, place: int) -> None:
    """That what the space does not leave open is as the space has it.

    Raises:
        HastenError: it is not.
    """
    expected = {
        "out_channels": config.scaled(config.widths[stage]),
        "stride": config.strides[stage] if place == 0 else 1,
        "act_func": config.activations[stage],
        "use_se": config.se[stage],
    }
    for name, value in expected.items():
        if block.get(name) != value:
            raise HastenError(
                f"{name} of block {place + 1} in stage {stage + 1} is {block.get(name)!r:.40}, and {value!r} in the "
                "paper's space: this is another network"
            )
