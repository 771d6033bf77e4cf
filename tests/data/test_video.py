"""Video clips: files, and frames where a decoder is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from hasten.data import assets, video
from hasten.errors import HastenError, MissingExtraError

decodes = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs pip install 'hasten[video]'")


def test_an_unknown_clip_is_one_line() -> None:
    with pytest.raises(HastenError, match="no clip is called 'cats': choose one of bigbuckbunny, bikes, carphone"):
        video.clip("cats")


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="PyAV is installed")
def test_without_a_decoder_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"hasten\[video\]"):
        video.frames(tmp_path / "a.mp4")


@decodes
def test_what_is_no_video_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    for name in ("a.mp4", "none.mp4"):
        with pytest.raises(HastenError, match="cannot read video"):
            list(video.frames(tmp_path / name))


@decodes
@pytest.mark.asset
@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [("bigbuckbunny", 132, (720, 1280, 3)), ("bikes", 250, (272, 640, 3)), ("carphone", 120, (144, 176, 3))],
)
def test_clips_decode_to_their_frames(name: str, count: int, shape: tuple[int, ...]) -> None:
    if assets.cached("video-clips") is None:
        pytest.skip("needs `hasten assets get video-clips`")
    seen = 0
    for frame in video.frames(video.clip(name)):
        assert frame.shape == shape
        assert frame.dtype == torch.uint8
        seen += 1
    assert seen == count


@pytest.mark.asset
def test_clips_are_mp4_files() -> None:
    if assets.cached("video-clips") is None:
        pytest.skip("needs `hasten assets get video-clips`")
    for name in video.CLIPS:
        assert video.clip(name).read_bytes()[4:8] == b"ftyp"
