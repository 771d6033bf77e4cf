"""Cache operators against a list of everything that was ever written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels import kv_cache as kernel
from hasten.runtime.cache import CacheSpec, KVCache

specs = st.one_of(
    st.sampled_from([CacheSpec(d) for d in ("fp32", "fp16", "bf16", "int8", "int4")]),
    st.builds(
        CacheSpec, st.sampled_from(["fp32", "fp16", "bf16", "int8", "int4"]), st.integers(1, 90), st.integers(0, 40)
    ),
)


def seen(spec: CacheSpec, length: int, new: int) -> list[int]:
    if length == new:
        return list(range(length))
    sinks, low = kernel.visible(length, new, spec.window, spec.sinks)
    return [*range(sinks), *range(low, length)]


@settings(max_examples=60, deadline=None)
@given(spec=specs, chunks=st.lists(st.integers(1, 70), min_size=1, max_size=8), seed=st.integers(0, 5))
def test_what_is_read_is_what_was_written(spec: CacheSpec, chunks: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(spec, layers=1, batch=2, heads=2, head_dim=32, capacity=sum(chunks))
    everything_k = torch.randn(2, 2, sum(chunks), 32, generator=generator)
    everything_v = torch.randn(2, 2, sum(chunks), 32, generator=generator)
    done = 0
    for new in chunks:
        part = slice(done, done + new)
        keys, values = cache.update(everything_k[:, :, part], everything_v[:, :, part], 0)
        done += new
        where = seen(spec, done, new)
        # A step of int4 over +-4 sigma is 8 / 15; half of it is the error.
        tolerance = {"fp32": 0.0, "fp16": 0.003, "bf16": 0.02, "int8": 0.03, "int4": 0.4}[spec.dtype]
        torch.testing.assert_close(keys, everything_k[:, :, where], rtol=0, atol=tolerance)
        torch.testing.assert_close(values, everything_v[:, :, where], rtol=0, atol=tolerance)
        assert cache.get_seq_length() == done


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_groups_run_along_the_right_axes(dtype: str) -> None:
    """A channel of large keys, or a token of large values, spoils nothing but itself."""
    cache = KVCache(CacheSpec(dtype), layers=1, batch=1, heads=1, head_dim=64, capacity=128)
    keys, values = torch.randn(1, 1, 96, 64), torch.randn(1, 1, 96, 64)
    keys[..., 5] *= 1000
    values[:, :, 7] *= 1000
    cache.update(keys, values, 0)
    read_k, read_v = cache.update(keys[:, :, :1], values[:, :, :1], 0)
    others = [c for c in range(64) if c != 5]
    assert (read_k[:, :, :96, others] - keys[..., others]).abs().max() < 0.3
    tokens = [t for t in range(96) if t != 7]
    assert (read_v[:, :, tokens] - values[:, :, tokens]).abs().max() < 0.3


def test_memory_is_what_the_format_says() -> None:
    sizes = {}
    for dtype in ("fp32", "fp16", "bf16", "int8", "int4"):
        sizes[dtype] = KVCache(CacheSpec(dtype), layers=2, batch=1, heads=3, head_dim=64, capacity=4096).nbytes
    assert sizes["bf16"] * 2 == sizes["fp16"] * 2 == sizes["fp32"]
    assert sizes["fp32"] / sizes["int8"] > 3.5
    assert sizes["fp32"] / sizes["int4"] > 5.5
    window = KVCache(CacheSpec("fp32", 256, 4), layers=2, batch=1, heads=3, head_dim=64, capacity=4096)
    assert window.nbytes < sizes["fp32"] / 8


def test_a_full_cache_says_so() -> None:
    from hasten.errors import HastenError

    cache = KVCache(CacheSpec(), layers=1, batch=1, heads=1, head_dim=32, capacity=4)
    with pytest.raises(HastenError, match="holds 4 tokens"):
        cache.update(torch.zeros(1, 1, 5, 32), torch.zeros(1, 1, 5, 32), 0)


def test_unfit_specs_are_refused() -> None:
    from hasten.errors import HastenError

    with pytest.raises(HastenError, match="unknown cache format"):
        CacheSpec("int3")
    with pytest.raises(HastenError, match="sinks go with a window"):
        CacheSpec(sinks=4)
    with pytest.raises(ValueError, match="multiple of 32"):
        KVCache(CacheSpec("int4"), layers=1, batch=1, heads=1, head_dim=48, capacity=4)
