"""Methods on a model described from its configuration: bytes and FLOPs by hand, on decoders of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.methods import Method, registry
from hasten.methods.described_cache import own_windows
from hasten.methods.spelling import UNCHANGED, Changed, read_methods, rewritten, spellings
from hasten.models.description import describe
from hasten.user_file import load_attribute
from hasten.workload import Workload

from .conftest import NETWORK_METHODS

PROMPT, NEW = 1200, 48
_SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 256}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_key_value_heads": 2, "intermediate_size": 256, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 4096}),
    "gemma2": ("Gemma2Config", {"num_key_value_heads": 2, "intermediate_size": 256, "head_dim": 32,
                                "sliding_window": 256}),
    "mixtral": ("MixtralConfig", {"num_key_value_heads": 2, "intermediate_size": 256, "num_local_experts": 8}),
    "deepseek": ("DeepseekV3Config", {
        "intermediate_size": 256, "moe_intermediate_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32, "num_key_value_heads": 4,
    }),
    "mamba": ("MambaConfig", {"state_size": 16}),
}  # fmt: skip
ATTENDING = [kind for kind in KINDS if kind != "mamba"]
_OF_A_CACHE = (
    "block-topk", "cache-format", "hybrid-window", "lambda-window", "sliding-window", "snapkv", "sparse-window",
)  # fmt: skip
# What has no place in a model, and the reason that is told.
REFUSED = {
    **{("mamba", method): "it keeps no keys" for method in _OF_A_CACHE},
    ("mamba", "prompt-lookup"): "its state cannot take drafts back",
    ("gemma2", "snapkv"): "its layers attend to a window of their own",
    ("gemma2", "sparse-window"): "its layers attend to a window of their own",
    **{(kind, method.name): "it is a language model" for kind in KINDS for method in NETWORK_METHODS},
}
_KNOWN: dict[str, Workload] = {}


def described(kind: str) -> Workload:
    if kind not in _KNOWN:
        name, extra = KINDS[kind]
        # GPT-2 has its own words for the sizes.
        sizes = {"vocab_size": 256} if kind == "gpt2" else _SIZES
        positions = {} if kind in ("gpt2", "mamba") else {"max_position_embeddings": 4096}
        config = getattr(transformers, name)(**{**sizes, **positions, **extra, "bos_token_id": 1, "eos_token_id": 2})
        # A recurrence without a cache has no use for a long prompt here.
        prompt = PROMPT if kind != "mamba" else 8
        _KNOWN[kind] = describe(config, prompt=prompt, new_tokens=NEW, dtype="bf16", name=kind)
    return _KNOWN[kind]


def changed(kind: str, text: str) -> Changed:
    return rewritten(described(kind), [text])[-1]


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", sorted(registry()))
def test_every_registered_method_has_a_word_and_fits_or_says_why_not(kind: str, method: str) -> None:
    word = next(s.text for s in spellings() if s.kind.name == method).replace("N", "1")
    if (kind, method) in REFUSED:
        with pytest.raises(HastenError, match=f"does not apply to {kind}: {REFUSED[kind, method]}") as told:
            changed(kind, word)
        assert "\n" not in str(told.value)
        return
    found = changed(kind, word)
    assert [m.name for m in found.methods] == [method]
    before, after = described(kind), found.workload
    assert (after.phases, dict(after.weights), dict(after.state)) != (
        before.phases, dict(before.weights), dict(before.state)
    ) or found.notes  # fmt: skip
    device = load_device("h100")
    assert estimate(after, device).latency > 0


@pytest.mark.parametrize("kind", KINDS)
def test_int4_weights_have_five_bits_with_their_scales(kind: str) -> None:
    before, after = described(kind).weights, changed(kind, "int4:head_bits=4").workload.weights
    packed = {n.removesuffix(".packed") for n in after if n.endswith(".packed")}
    plain = {base: before.get(f"{base}.weight", before.get(base)) for base in packed}
    # A nibble each, and fp16 of scale and minimum for 32 of them: 5 bits where bf16 has 16.
    assert sum(size for size in plain.values() if size) * 5 / 16 == pytest.approx(
        sum(size for n, size in after.items() if n.rpartition(".")[2] in ("packed", "scales", "mins"))
    )
    left = {n: size for n, size in after.items() if n in before}
    matrices = [n for n in left if "embed" not in n and "wpe" not in n and left[n] > 40_000]
    assert not matrices or kind == "mamba", "nothing large stays"
    assert set(packed) >= ({"lm_head"} if "lm_head.weight" in before else set())


@pytest.mark.parametrize("kind", ATTENDING)
def test_an_int8_cache_is_half_of_a_bf16_one_and_its_scales(kind: str) -> None:
    before, after = described(kind).state, changed(kind, "kv-int8").workload.state
    codes = {n: b for n, b in after.items() if n.endswith((".keys", ".values"))}
    assert set(codes) == {n for n in before if n.endswith((".keys", ".values"))}
    windows = own_windows(described(kind))
    for name, size in codes.items():
        if int(name.split(".")[1]) not in windows:
            assert size * 2 == pytest.approx(before[name], rel=0.03)  # whole blocks of 32 tokens
            short = name.removesuffix("s")
            assert after[f"{short}_scales"] == pytest.approx(size / 16)  # 2 bytes for 32 codes


@pytest.mark.parametrize("kind", ATTENDING)
def test_a_window_caps_what_is_kept_and_read(kind: str) -> None:
    before, after = described(kind), changed(kind, "window:512,0").workload
    assert after.state_bytes < before.state_bytes * (0.5 if not own_windows(before) else 0.9)
    step = {p.name: p.cascade for p in after.phases}["decode"]
    longest = max(e.sizes.get("m", 0) for e in step.einsums if "attention" in e.source)
    assert longest == 512


def test_a_window_wider_than_a_layer_s_own_leaves_it_that() -> None:
    after = changed("gemma2", "window:512,0").workload.phase("decode").cascade
    assert {e.sizes["m"] for e in after.einsums if "attention" in e.source and e.flops} == {256, 512}


@pytest.mark.parametrize("kind", KINDS)
def test_two_layers_less_are_two_layers_share(kind: str) -> None:
    before, after = described(kind), changed(kind, "layers-1").workload
    gone = {n: b for n, b in before.weights.items() if ".2." in n and n.count(".2.") == 1 and "experts.2" not in n}
    assert before.weight_bytes - after.weight_bytes == sum(gone.values()) > 0
    four, three = (w.phase("decode").cascade.flops for w in (before, after))
    head = sum(e.flops for e in before.phase("decode").cascade.einsums if e.module.endswith("lm_head"))
    if kind not in ("deepseek", "gemma2"):  # their layers are of two kinds
        assert (three - head) / (four - head) == pytest.approx(3 / 4)
    assert len({n.split(".")[1] for n in after.state if n.startswith("cache.")}) in (0, 3)


def test_a_layer_that_is_not_there_is_refused() -> None:
    for word in ("layers-4", "layers-9", "drop-layers:7"):
        with pytest.raises(HastenError, match="llama: it has 4 layers"):
            changed("llama", word)


@pytest.mark.parametrize("word", ["window:5000", "snapkv:5000", "2:4", "block-topk:100,50"])
def test_what_changes_nothing_says_so(word: str) -> None:
    if word.startswith("block"):  # it keeps blocks' means all the same
        assert changed("llama", word).workload.flops == described("llama").flops
    else:
        assert [n for n in changed("llama", word).notes if "changes nothing that is priced here" in n]


def test_the_cache_of_a_cross_attention_stays() -> None:
    config = transformers.WhisperConfig(
        vocab_size=256, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=448,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    work = describe(config, prompt=128, new_tokens=64, dtype="bf16", name="hears")
    after = rewritten(work, ["kv-int8", "window:32,0", "snapkv:64"])
    for one in after[1:]:  # so short a cache gains nothing by codes: the newest 64 tokens are none
        crossing = {n: b for n, b in one.workload.state.items() if "cross_" in n}
        assert crossing == {n: b for n, b in work.state.items() if "cross_" in n} != {}
        assert one.workload.state_bytes < work.state_bytes or "int8" in one.title
    less = rewritten(work, ["layers-1"])[-1].workload
    assert {n.split(".")[1] for n in less.state} == {"0"}


def test_drafts_hit_more_experts() -> None:
    def read(work: Workload) -> int:
        step = work.phase("decode").cascade
        found = [(e, a) for e in step.einsums for a in e.inputs if a.tensor == "model.layers.0.mlp.experts.down_proj"]
        return sum(e.touched(a) for e, a in found)

    one, five = read(described("mixtral")), read(changed("mixtral", "prompt-lookup:accepted=2").workload)
    whole = 8 * 128 * 256
    assert one == pytest.approx(whole / 4)  # two of eight
    assert five == pytest.approx(whole * (1 - (3 / 4) ** 5), rel=1e-3)


def test_methods_combine_in_any_order() -> None:
    one, other = (changed("llama", text).workload for text in ("int4+kv-int8+window:512", "window:512+int4+kv-int8"))
    assert (one.weight_bytes, one.state_bytes) == (other.weight_bytes, other.state_bytes)
    assert changed("llama", "int4+kv-int8").workload.weight_bytes == changed("llama", "int4").workload.weight_bytes


def test_a_cache_of_codes_is_unpacked_within_attention() -> None:
    step = changed("llama", "kv-int8").workload.phase("decode").cascade
    kernels = {e.kernel for e in step.einsums if "attention" in e.source}
    unpacked = [e for e in step.einsums if e.source == "hasten::kv_read"]
    assert len(unpacked) == 8
    assert {e.kernel for e in unpacked} == kernels
    for kernel in kernels:  # one launch each: nothing stands between
        places = [i for i, e in enumerate(step.einsums) if e.kernel == kernel]
        assert places == list(range(places[0], places[-1] + 1))


def test_what_is_narrow_already_says_so() -> None:
    config = transformers.LlamaConfig(**{**_SIZES, "intermediate_size": 256})
    held = describe(config, prompt=32, new_tokens=2, dtype="int4", name="held")
    with pytest.raises(HastenError, match="int4 already") as told:
        rewritten(held, ["int4:head_bits=0"])
    assert "\n" not in str(told.value)


def test_eight_bits_become_four() -> None:
    config = transformers.LlamaConfig(**{**_SIZES, "intermediate_size": 256})
    plain, held = (describe(config, prompt=32, new_tokens=2, dtype=d, name="held") for d in ("bf16", "w8a8"))
    one, other = (rewritten(work, ["int4:head_bits=4"])[-1].workload for work in (plain, held))
    assert one.weight_bytes == other.weight_bytes < held.weight_bytes
    assert not any(e.map.startswith("mul-") for e in other.phase("decode").cascade.einsums if e.flops)


def test_context_counts_as_cached() -> None:
    config = transformers.LlamaConfig(**{**_SIZES, "intermediate_size": 256})
    work = describe(config, prompt=64, new_tokens=32, context=1024, dtype="bf16", name="deep")
    after = rewritten(work, ["kv-int8"])[-1].workload
    assert after.state["cache.0.keys"] * 2 == pytest.approx(work.state["cache.0.keys"], rel=0.05)
    prompt = after.phase("prefill").cascade
    assert {e.sizes["m"] for e in prompt.einsums if "attention" in e.source and e.flops} == {1024 + 64}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("imt4", "unknown method 'imt4' (did you mean int4?): give one of "),
        ("kv-int8+kv-int4", "two methods for the same thing (cache): choose one"),
        ("window:1024+snapkv", "two methods for the same thing (window): choose one"),
        ("sparse-window+prompt-lookup", "do not go together"),
        ("window:0", "a sliding window takes window >= 1"),
        ("window:1,2,3", "takes 2 values (window, sinks) behind the colon, not 3"),
        ("kv-int8:4", "cache-format takes no values behind the colon, not 1"),
        ("int4:bits=8", "bits is given twice"),
        ("int4:colour=red", "method weight-only has no setting 'colour'"),
        ("block-topk:top=many", "top is of type int, not 'many'"),
        ("int4,kv-int8", "(methods in one line are joined by +: int4+kv-int8)"),
        ("", "unknown method ''"),
        ("int4+", "unknown method ''"),
    ],
)
def test_words_that_mean_nothing_are_one_line(text: str, told: str) -> None:
    with pytest.raises(HastenError) as error:
        read_methods(text, described("llama"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_follow_a_colon() -> None:
    work = described("llama")
    (window,) = read_methods("window:512,2", work)
    assert window.to_dict() == {"method": "sliding-window", "window": 512, "sinks": 2}
    (hybrid,) = read_methods("hybrid-window:512,full_layers=1/2", work)
    assert hybrid.to_dict()["full_layers"] == [1, 2]
    (dropped,) = read_methods("drop-layers:1,3", work)
    assert dropped.to_dict()["layers"] == [1, 3]
    assert read_methods("Window:512,2", work) == (window,)
    assert [m.name for m in read_methods("2:4-int2", work)] == ["sparse-low-bit"]
    assert [m.name for m in read_methods("2:4:magnitude", work)] == ["two-of-four"]


def test_each_way_to_write_a_method_is_there_once() -> None:
    words = [s.text for s in spellings()]
    assert len(words) == len(set(words))
    assert {s.kind for s in spellings()} == set(registry().values())


def test_the_unchanged_model_comes_first_and_nothing_twice() -> None:
    found = rewritten(described("llama"), ["int4", "int4", "weight-only:4"])
    assert [one.title for one in found] == [UNCHANGED, "int4 weights, head int8"]


OWN = """
from dataclasses import dataclass, replace
from hasten.methods import Method

@dataclass(frozen=True)
class Half(Method):
    name, kind = "own-half", "own"
    share: float = 0.5

    @property
    def title(self):
        return f"own {self.share}"

    def why_not(self, model):
        return None

    def apply(self, model):
        return model

    def rewrite(self, workload):
        if self.share > 1:
            raise ValueError("more than all")
        return replace(workload, weights={n: int(b * self.share) for n, b in workload.weights.items()})

    @classmethod
    def variants(cls, model):
        return []
"""


def test_a_method_of_the_user_s_own(tmp_path: Path) -> None:
    from hasten.methods.method import _REGISTRY

    file = tmp_path / "own.py"
    file.write_text(OWN)
    work = described("llama")
    try:
        found = rewritten(work, [f"{file}:Half:0.25"], load_attribute)[-1]
        assert found.workload.weight_bytes == pytest.approx(work.weight_bytes / 4, rel=0.01)
        wrong = {
            f"{file}:Half:2.0": "more than all",
            f"{file}:Method": "cannot be made|no method",
            f"{file}:Nothing": "defines no 'Nothing'",
            f"{tmp_path}/none.py:A": "no file",
        }
        for word, told in wrong.items():
            with pytest.raises(HastenError, match=told):
                rewritten(work, [word], load_attribute)
        assert issubclass(load_attribute(file, "Half"), Method)
    finally:
        _REGISTRY.pop("own-half", None)
