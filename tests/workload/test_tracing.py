"""The tracer's FLOPs are torch's own; nothing is dropped; nothing is computed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hasten.errors import HastenError
from hasten.workload import Op, Role, trace, trace_cascade
from hasten.workload.dispatch import Tracer

torch.manual_seed(0)


def counted(module: nn.Module, *inputs: torch.Tensor, **kwargs: object) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs, **kwargs)
    return counter.get_total_flops()


class Einsums(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bij,bjk->bik", x, y).softmax(-1) @ y.transpose(1, 2)


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES = {
    "mlp": (nn.Sequential(nn.Linear(20, 50), nn.GELU(), nn.Linear(50, 7)), [(3, 20)]),
    "conv": (
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        [(2, 3, 17, 17)],
    ),
    "grouped": (nn.Conv2d(8, 16, 3, groups=4), [(2, 8, 9, 9)]),
    "depthwise": (nn.Conv1d(6, 6, 5, groups=6), [(2, 6, 30)]),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), [(2, 4, 7, 7)]),
    "conv3d": (nn.Conv3d(2, 4, 3), [(1, 2, 6, 6, 6)]),
    "einsum": (Einsums(), [(2, 5, 6), (2, 6, 6)]),
}


@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_torch(name: str) -> None:
    module, shapes = CASES[name]
    module.eval()
    inputs = [torch.randn(s) for s in shapes]
    workload = trace(module, *inputs)
    assert workload.flops == counted(module, *inputs) > 0
    assert workload.unknown == ()


def test_attention_counts_both_products() -> None:
    q = torch.randn(2, 3, 8, 16)
    k, v = torch.randn(2, 3, 12, 16), torch.randn(2, 3, 12, 16)
    cascade = trace(Attention(), q, k, v).phases[0].cascade
    assert cascade.flops == 2 * 2 * (2 * 3 * 8 * 12 * 16)
    assert len({e.kernel for e in cascade}) == 1
    assert [e.reduce for e in cascade] == ["sum", "max", None, "sum", "sum", None]


CONFIGS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
}


def tiny(name: str) -> nn.Module:
    import transformers

    kind, extra = CONFIGS[name]
    sizes = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = getattr(transformers, kind)(**({"vocab_size": 97} if name == "gpt2" else sizes), **extra)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_of_transformers_models(name: str) -> None:
    model, ids = tiny(name), torch.randint(0, 97, (2, 11))
    workload = trace(model, ids, use_cache=False)
    attention = 0
    for einsum in workload.phases[0].cascade:
        if "scaled_dot_product" in einsum.source:
            attention += einsum.flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    own = sum(v for k, v in counts.items() if "scaled_dot_product" not in str(k))
    assert workload.flops - attention == own > 0
    fused = sum(v for k, v in counts.items() if "scaled_dot_product" in str(k))
    heads = 2 * 4 * 11 * 11 * 16 * 2 * 2 * 2
    assert attention == heads
    assert fused in (0, heads)  # torch's counter knows some fused attentions only
    assert workload.unknown == ()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.RNNBase]) -> None:
    layer = kind(12, 20)
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    workload = trace(layer, torch.randn(7, 3, 12))
    assert workload.flops == 2 * 7 * 3 * gates * 20 * (12 + 20)


def test_tied_weights_count_once_and_roles_are_right() -> None:
    model = tiny("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    workload = trace(model, torch.randint(0, 97, (1, 5)), use_cache=False)
    unique = {p.data_ptr(): p.nbytes for p in (*model.parameters(), *model.buffers())}
    assert workload.weight_bytes == sum(unique.values())
    cascade = workload.phases[0].cascade
    assert any(t.role is Role.OUTPUT for t in cascade.tensors.values())
    assert {e.module for e in cascade if e.op is Op.MATMUL and "q_proj" in e.module} == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    }


def test_unknown_operators_are_listed_and_counted_in_bytes() -> None:
    @torch.library.custom_op("hasten_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @mystery.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mystery(x) + 1

    workload = trace(Odd(), torch.randn(5, 4))
    assert workload.unknown == ("hasten_test::mystery",)
    (einsum,) = [e for e in workload.phases[0].cascade if e.op is Op.UNKNOWN]
    cascade = workload.phases[0].cascade
    assert cascade.access_bytes(einsum, einsum.inputs[0]) == 5 * 4 * 4


def test_a_large_model_takes_no_memory_and_little_time() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    started = time.process_time()
    workload = trace(model, torch.zeros(1, 16, dtype=torch.int64), use_cache=False)
    assert workload.weight_bytes == sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    # Seconds of the processor, whatever else the machine does; the figure itself is benchmarks/estimate.py's.
    assert time.process_time() - started < 60


@pytest.mark.slow_except("LongcatFlash*")
@pytest.mark.parametrize("name", ["DeepseekV3", "LongcatFlash"])
def test_half_a_trillion_parameters_are_traced_without_memory(name: str) -> None:
    import resource

    import transformers

    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workload = trace(model.eval(), torch.zeros(1, 32, dtype=torch.int64), use_cache=False)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert workload.weight_bytes > 4 * 500e9
    assert grown < 500e6
    assert workload.unknown == ()
    experts = [e for e in workload.phases[0].cascade if "grouped_mm" in e.source]
    assert experts
    assert all(e.sizes["m"] <= 32 * 12 for e in experts)  # active experts only


def test_a_mixture_of_experts_counts_its_active_experts() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        experts_implementation="eager",
    )
    model, ids = MixtralForCausalLM(config).eval(), torch.randint(0, 97, (2, 11))
    workload = trace(model, ids, use_cache=False)
    assert model.config._experts_implementation == "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(ids, use_cache=False)
    assert workload.flops == counter.get_total_flops() > 0


def test_an_encoder_too() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model, ids = BertModel(config).eval(), torch.randint(0, 97, (2, 11))
    workload = trace(model, ids)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(ids)
    assert workload.flops == counter.get_total_flops() > 0
    assert workload.unknown == ()


def test_shapes_that_depend_on_values_are_one_clear_line() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x.sum(1) > 0] * x.shape[0]

    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(int(x.sum().item()))

    for module in (nn.Sequential(Picky()), Counts()):
        with pytest.raises(HastenError, match="depend on values") as caught:
            trace(module, torch.ones(3, 4))
        assert "\n" not in str(caught.value)
    layer = nn.Linear(4, 2)
    trace(layer, torch.ones(3, 4))  # nothing is left behind
    assert layer(torch.ones(3, 4)).shape == (3, 2)


def test_a_function_over_a_module_with_state_on_the_meta_device() -> None:
    layer = nn.Linear(4, 4)
    state = torch.empty(1000, 4, device="meta")

    def step(x: torch.Tensor) -> torch.Tensor:
        state[7:8] = layer(x)
        return state[:8].sum(0)

    traced = trace_cascade(step, (torch.ones(1, 4),), module=layer, state={"memory": state})
    assert traced.weights == {"weight": 64, "bias": 16}
    assert traced.state == {"memory": 16000}
    write = next(e for e in traced.cascade if e.output.tensor == "memory")
    assert write.touched(write.output) == 4
    read = traced.cascade.einsums[-1]
    assert read.touched(read.inputs[0]) == 32


def test_tracing_leaves_the_module_as_it_was() -> None:
    module = nn.Linear(4, 4)
    weight = module.weight
    trace(module, torch.randn(2, 4))
    assert module.weight is weight
    assert module(torch.randn(2, 4)).shape == (2, 4)


def test_views_and_in_place_writes_cost_what_they_touch() -> None:
    class Slices(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x[:, :2].t().reshape(2, -1)
            y = y.expand(3, *y.shape)
            return y + 1

    cascade = trace(Slices(), torch.randn(4, 8)).phases[0].cascade
    (add,) = cascade.einsums
    assert add.points == 3 * 2 * 4
    assert add.touched(add.inputs[0]) == 2 * 4


def test_a_trace_may_have_a_limit_and_state_bound_within_it() -> None:
    def limited(tracer: Tracer) -> AbstractContextManager[None]:
        tracer.recorder.most = 20
        return nullcontext()

    def loop(x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[0]):
            x = x * 2
        return x

    assert len(trace_cascade(loop, (torch.zeros(20),), within=limited).cascade) == 20
    with pytest.raises(HastenError, match="more than 20 operators in one call"):
        trace_cascade(loop, (torch.zeros(21),), within=limited)
