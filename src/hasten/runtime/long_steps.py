"""A decoding step over a long cache whose contents do not matter: timed without reading a prompt of that length."""

from __future__ import annotations

from collections.abc import Callable

from hasten.errors import HastenError
from hasten.runtime.language_model import LanguageModel


def steps_over(model: LanguageModel, length: int, batch: int, most: int) -> Callable[[], None]:
    """A call that makes the next token of each sequence by the compiled step.

    Args:
        model: whose cache is bf16 or fp32.
        length: tokens of random numbers that the cache begins with.
        batch: sequences.
        most: calls that will be made; the cache has room for as many.

    Raises:
        HastenError: the compiled step cannot run this model.
    """
    cache, step = model.session(batch, length + most + 1)
    if step is None:
        raise HastenError(f"its step cannot be timed: {model.why_not_compiled}")
    for layer in cache.layers:
        for tensor in layer.tensors.values():
            tensor.normal_()
    cache.lengths[:] = [length] * batch
    cache.quantized[:] = [length // 32] * batch
    rows = list(range(batch))

    def call() -> None:
        step([1] * batch, rows, list(cache.lengths))
        cache.advance([1] * batch)

    return call
