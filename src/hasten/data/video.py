"""Real video clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.data import assets
from hasten.errors import HastenError, MissingExtraError
from hasten.files import checked_file

CLIPS = {"bigbuckbunny": "bigbuckbunny.mp4", "bikes": "bikes.mp4", "carphone": "carphone_pristine.mp4"}


def clip(name: str, progress: assets.Progress = lambda message: None) -> Path:
    """The file of one of `CLIPS` (asset ``video-clips``).

    Raises:
        HastenError: there is none of that name, or it cannot be fetched.
    """
    if name not in CLIPS:
        raise HastenError(f"no clip is called {name!r}: choose one of {', '.join(CLIPS)}")
    return assets.get("video-clips", progress) / CLIPS[name]


def frames(path: str | Path) -> Iterator[Tensor]:
    """The frames of a video file, one after the other: (height, width, 3) uint8, RGB.

    Raises:
        MissingExtraError: PyAV, which decodes, is not installed.
        HastenError: the file is missing or is not a video.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "video") from None
    return _decoded(av, checked_file(path, "video", 0))


def _decoded(av: Any, path: Path) -> Iterator[Tensor]:
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield torch.from_numpy(frame.to_ndarray(format="rgb24"))
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise HastenError(f"cannot read video {path}: {error}") from None
