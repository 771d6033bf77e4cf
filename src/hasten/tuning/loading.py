"""A model as tuning takes it: in fp32, so that methods may choose its format, or packed where that would not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from hasten.data import assets
from hasten.hardware.machine import memory_size
from hasten.kernels.packed_linear import fast_bf16
from hasten.models.loading.gguf import GGUFFile
from hasten.models.loading.loaded import Loaded
from hasten.models.loading.network import load_network, load_packed

# Share of memory that a GGUF file may take in fp32.
_SHARE = 0.4


def load_base(
    source: str | Path, *, packed: bool | None = None, progress: Callable[[str], None] = lambda message: None
) -> tuple[Loaded, bool]:
    """The model, and whether its weights stay as its file packs them.

    Args:
        source: what `hasten.models.load_network` takes.
        packed: whether they shall; None: where they would take too much of this machine's memory in fp32.
        progress: told what is being loaded.

    Raises:
        HastenError: the model cannot be loaded.
    """
    if packed is None:
        packed = unpacked_bytes(source) > _SHARE * memory_size()
    if packed:
        return load_packed(source, int8=True, bf16=fast_bf16(), progress=progress), True
    return load_network(source, progress=progress), False


def unpacked_bytes(source: str | Path) -> float:
    """Bytes of a GGUF file's weights in fp32; 0 for anything else."""
    path = Path(source)
    if path.suffix != ".gguf" or not path.is_file() or any(a.name == str(source) for a in assets.assets()):
        return 0.0
    return 4.0 * sum(math.prod(info.shape) for info in GGUFFile(path).tensors.values())
