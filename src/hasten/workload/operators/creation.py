"""New tensors: filled, counted or random; and operators that compute nothing."""

from __future__ import annotations

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, Handler, register
from hasten.workload.operators.patterns import axes


def _fills(map: str) -> Handler:
    def handler(call: Call) -> None:
        for output in call.outputs:
            ranks = axes(output.shape)
            call.emit(Op.COPY, ranks, [], output, [r for r, _ in ranks], map=map)

    return handler


register(
    "aten::zeros",
    "aten::ones",
    "aten::full",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
    "aten::scalar_tensor",
    "aten::fill_",
    "aten::zero_",
    "aten::fill",
    "aten::zero",
    "aten::eye",
    "aten::_efficientzerotensor",
)(_fills("fill"))


register("aten::arange", "aten::linspace", "aten::logspace", "aten::tril_indices", "aten::triu_indices")(_fills("iota"))


register(
    "aten::rand",
    "aten::randn",
    "aten::randint",
    "aten::rand_like",
    "aten::randn_like",
    "aten::normal_",
    "aten::uniform_",
    "aten::bernoulli_",
    "aten::randperm",
    "aten::exponential_",
    "aten::randint_like",
    "aten::normal",
)(_fills("random"))


@register(
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::lift_fresh",
    "aten::lift",
    "aten::set_",
    "aten::resize_",
    "aten::as_strided_",
    "aten::sym_size",
    "aten::is_same_size",
    "aten::empty_permuted",
    "aten::_assert_async",
    "aten::_assert_tensor_metadata",
    "aten::_local_scalar_dense",
    "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
    "aten::_assert_scalar",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
    "aten::record_stream",
)
def _nothing(call: Call) -> None:
    """Reserves or checks, computes nothing."""
