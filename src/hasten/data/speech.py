"""Spoken words made by the synthesiser of the Debian package ``espeak-ng``, in many voices."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from hasten.errors import HastenError

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "oh")
_ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan")
_SPEAKERS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")
_SECONDS = 20.0


def synthesiser() -> str:
    """The program that speaks.

    Raises:
        HastenError: it is not installed.
    """
    found = shutil.which("espeak-ng")
    if found is None:
        raise HastenError("words are spoken by espeak-ng, which is not installed: apt-get install espeak-ng")
    return found


def spoken_words(
    utterances: int, words: Sequence[str] = DIGIT_WORDS, seed: int = 0
) -> tuple[list[Tensor], Tensor, int]:
    """Each word ``utterances`` times, in voices, speeds and pitches of chance.

    Returns:
        (signals, labels, rate): fp32 signals (samples,) of -1 .. 1, which word each is, and samples a second.

    Raises:
        HastenError: there is no synthesiser, it fails, or nothing was asked for.
    """
    if utterances < 1 or not words:
        raise HastenError("give at least one word, once")
    program, generator = synthesiser(), random.Random(seed)
    commands, labels = [], []
    for label, word in enumerate(words):
        for _ in range(utterances):
            voice = f"{generator.choice(_ACCENTS)}+{generator.choice(_SPEAKERS)}"
            speed, pitch = generator.randint(110, 220), generator.randint(20, 80)
            commands.append([program, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", "--", word])
            labels.append(label)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spoken = list(pool.map(_spoken, commands))
    (rate,) = {r for _, r in spoken}
    return [signal for signal, _ in spoken], torch.tensor(labels), rate


def _spoken(command: list[str]) -> tuple[Tensor, int]:
    try:
        ran = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise HastenError(f"espeak-ng said nothing within {_SECONDS:g} s: {command[-1]!r:.40}") from None
    except OSError as error:
        raise HastenError(f"{command[0]} does not run: {error.strerror}") from None
    try:
        # What is streamed says that it is longer than it is.
        with wave.open(io.BytesIO(ran.stdout)) as file:
            width, rate, sound = file.getsampwidth(), file.getframerate(), file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        told = ran.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {ran.returncode}"]
        raise HastenError(f"espeak-ng cannot say {command[-1]!r:.40}: {told[0][:200]}") from None
    if width != 2 or not sound:
        raise HastenError(f"espeak-ng made no sound of {command[-1]!r:.40}")
    return torch.from_numpy(np.frombuffer(sound, "<i2").astype(np.float32) / 32768), rate


def cochlea_events(signals: Sequence[Tensor], rate: int, channels: int = 64, steps: int = 129) -> Tensor:
    """Sounds as events: energy in bands of the mel scale fills a cell a band, which has an event when it is full.

    A signal is stretched to ``steps`` frames; energies are logarithms, from 60 dB below the loudest of a signal up.

    Args:
        signals: (samples,) each.
        rate: samples a second.
        channels: bands, from 64 Hz to 8 kHz or half the rate.

    Returns:
        (signals, steps, channels) fp32, 0 or 1.
    """
    window = torch.hann_window(512)
    filters = _mel(channels, 257, rate)
    if not signals:
        return torch.zeros(0, steps, channels)
    found = []
    for signal in signals:
        frames = torch.nn.functional.pad(signal, (256, 256))
        hop = max(1, (len(frames) - 512) // max(1, steps - 1))
        frames = torch.nn.functional.pad(frames, (0, max(0, 512 + hop * (steps - 1) - len(frames))))
        spectrum = torch.fft.rfft(frames.unfold(0, 512, hop)[:steps] * window).abs().square()
        energy = spectrum @ filters
        loud = 10 * torch.log10(energy / energy.max().clamp(min=1e-12) + 1e-6) / 60 + 1
        # A full cell has half an event a step at most.
        filled = (0.5 * loud).cumsum(0).floor()
        found.append(torch.diff(filled, dim=0, prepend=torch.zeros(1, channels)).clamp(max=1))
    return torch.stack(found)


def _mel(channels: int, bins: int, rate: int) -> Tensor:
    """Triangles (bins, channels) that lie evenly on the mel scale."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (64.0, min(8000.0, rate / 2)))
    edges = 700 * (10 ** (torch.linspace(float(low), float(high), channels + 2) / 2595) - 1)
    at = torch.linspace(0, rate / 2, bins)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    # Low bands are narrower than a bin: each has its nearest one.
    nearest = torch.zeros_like(triangles)
    nearest[(at - edges[1:-1]).abs().argmin(0), torch.arange(channels)] = 1
    return torch.where(triangles.sum(0) > 0, triangles, nearest)
