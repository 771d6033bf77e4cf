"""Sizes that Python and the compiled kernels both have stand once on each side, and are the same."""

from __future__ import annotations

import importlib

import pytest

from hasten.kernels import native
from hasten.kernels.kv_cache import BLOCK, MOST_NEW, RECENT


def test_the_compiled_kernels_have_the_same_sizes() -> None:
    module = native()
    if module is None:
        pytest.skip("the compiled kernels are not installed")
    if not hasattr(module, "constants"):
        pytest.skip("the compiled kernels are older than these sources: build them again")
    constants = module.constants()
    assert len(constants) >= 14
    for name, compiled in constants.items():
        file, _, constant = name.partition(".")
        assert getattr(importlib.import_module(f"hasten.kernels.{file}"), constant) == compiled, name


def test_the_newest_tokens_hold_a_step_beside_a_block() -> None:
    """A step's tokens may not overwrite what it reads: at most a block is unquantized before it."""
    assert RECENT - BLOCK >= MOST_NEW
