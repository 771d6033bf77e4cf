"""Spoken words, and sounds as events."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
import torch

from hasten.data.speech import cochlea_events, spoken_words, synthesiser
from hasten.errors import HastenError


def test_words_are_spoken_in_voices_of_chance() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng (a Debian package) is not installed")
    signals, labels, rate = spoken_words(2, ("one", "seven"), seed=1)
    assert labels.tolist() == [0, 0, 1, 1]
    assert rate == 22050
    assert all(0.1 * rate < len(s) < 3 * rate and 0.05 < float(s.abs().max()) <= 1 for s in signals)
    assert len({len(s) for s in signals}) > 2
    again, _, _ = spoken_words(2, ("one", "seven"), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(signals, again, strict=True))
    events = cochlea_events(signals, rate)
    assert events.shape == (4, 129, 64)
    assert 0.02 < float(events.mean()) < 0.4


def test_a_tone_has_events_in_its_band_and_in_its_time() -> None:
    time = torch.arange(22050) / 22050
    tone = torch.sin(2 * torch.pi * 1000 * time) * (time < 0.5)
    events = cochlea_events([tone, torch.sin(2 * torch.pi * 3000 * time)], 22050, 64, 100)
    assert set(events.unique().tolist()) == {0.0, 1.0}
    low, high = (int(e.sum(0).argmax()) for e in events)
    assert low < high
    assert float(events[0, :45, low].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(events[0, 55:].sum()) == 0
    assert cochlea_events([torch.zeros(50)], 22050, 8, 20).shape == (1, 20, 8)
    assert cochlea_events([], 22050, 8, 20).shape == (0, 20, 8)


def test_what_is_missing_or_fails_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HastenError, match="apt-get install espeak-ng"):
        synthesiser()
    program = tmp_path / "espeak-ng"
    program.write_bytes(b"\x7fELF is no program")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(HastenError, match="espeak-ng does not run: "):
        spoken_words(1, ("one",))
    program.write_text("#!/bin/sh\necho no such voice >&2\nexit 1\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(HastenError, match="cannot say 'one': no such voice"):
        spoken_words(1, ("one",))
    with pytest.raises(HastenError, match="at least one word"):
        spoken_words(0)
