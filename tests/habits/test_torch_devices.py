"""On another device nothing is made on the processor: of every block, network and operator, forward and backward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from .examples import EXAMPLES, OPERATORS, STATEFUL
from .exemptions import expected

STEPS = [f"{name}: step" for name in STATEFUL]
FUNCTIONS = [
    "balance_loss",
    "block_sparse_attention: SinkWindow",
    "block_sparse_attention: VerticalStride",
    "whole_attention",
    "language model",
    "language model: int8 cache",
    "language model: window",
    "language model: SnapKV",
    "language model: prompt lookup",
    "probe of a GPU",
]


@pytest.fixture(scope="module")
def tried() -> dict[str, str]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch takes no device that is made up")
    here = Path(__file__).parent
    command = [sys.executable, str(here / "other_device.py"), str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXAMPLES, *STEPS, *(f"operator {name}" for name in OPERATORS), *FUNCTIONS])
def test_nothing_is_made_on_the_processor(name: str, tried: dict[str, str]) -> None:
    with expected(name, "device"):
        assert not tried[name]
