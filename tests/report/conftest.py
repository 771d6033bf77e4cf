"""A tuning result as a run leaves it, with numbers that are easy to find again on a page."""

import pytest

from hasten.tuning.outcome import Combination, Figures, Kernel, Prediction, Roof, TuneResult

PLACES = {
    "self_attn.q_proj": 332e3,
    "self_attn.o_proj": 332e3,
    "mlp.gate_proj": 885e3,
    "mlp.up_proj": 885e3,
    "mlp.down_proj": 885e3,
}
BANDWIDTH, PEAK = 25e9, 333e9


def kernels(weight_bytes):
    """A decoder of 30 layers on a machine of 25 GB/s and 333 GFLOP/s."""
    found = []
    for phase, rows in (("prefill", 512), ("decode", 1)):
        for layer in range(30):
            where = f"network.model.layers.{layer}"
            norm = f"{where}.input_layernorm"
            found.append(Kernel(phase=phase, name=f"norm_{layer}", module=norm, latency=9e-6 * rows**0.5,
                                flops=2304 * rows, bytes=4608 * rows, bound="launch"))  # fmt: skip
            for place, weights in PLACES.items():
                moved, flops = weights * weight_bytes + rows * 2304, 2 * weights * rows
                slow, bound = max((moved / BANDWIDTH, "DDR4"), (flops / PEAK * 1.6, "AVX-512"))
                found.append(Kernel(phase=phase, name="linear", module=f"{where}.{place}", latency=slow + 5e-6,
                                    flops=flops, bytes=moved, bound=bound))  # fmt: skip
        head = 28.3e6 * weight_bytes
        found.append(Kernel(phase=phase, name="linear", module="network.lm_head", latency=head / BANDWIDTH,
                            flops=56.6e6, bytes=head, bound="DDR4"))  # fmt: skip
    return found


def combination(title, predicted, measured=None, perplexity=None, pareto=False, failure=""):
    figures = None
    if measured:
        prefill, decode, memory = measured
        figures = Figures(
            prefill=prefill,
            decode=decode,
            decode_low=decode * 0.97,
            decode_high=decode * 1.05,
            prefill_rate=512 / prefill,
            decode_rate=64 / decode,
            memory=memory,
            perplexity=perplexity,
            perplexity_error=0.11,
            agreement=0.875,
        )
    return Combination(
        title=title,
        methods=[{"name": part} for part in title.split(" + ")] if title != "unchanged" else [],
        predicted=Prediction(**dict(zip(("prefill", "decode", "memory"), predicted))),
        measured=figures,
        within_floor=perplexity <= 22.01 if perplexity else None,
        pareto=pareto,
        failure=failure,
    )


def make_result(**changes):
    facts = {
        "model": "SmolLM2-135M-Instruct",
        "source": "smollm2-135m-instruct",
        "fingerprint": "9c0ffee1",
        "prompt": 512,
        "new_tokens": 64,
        "batch": 1,
        "text": "pydoc_data.topics",
        "floor": 0.03,
        "device": "this machine (2 cores, AVX-512)",
        "identity": {"processor": "Some CPU @ 2.60GHz", "cores": "2", "memory": "24 GB"},
        "roof": Roof(
            compute={"fp32": PEAK, "bf16": 666e9, "int8": 1331e9}, memory={"L2": 250e9, "L3": 80e9, "DDR4": BANDWIDTH}
        ),
        "versions": {"hasten": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
        "command": "hasten tune --prompt 512 --new-tokens 64 --study smol.db",
        "started": "2026-11-23 16:00",
        "seconds": 431.0,
        "stopped": "seconds",
        "reference": combination("peer", (0, 0, 0), (0.613, 4.871, 640e6), 21.37).measured,
        "baseline": combination("unchanged", (0.41, 1.55, 561e6), (0.452, 1.612, 570e6), 21.37),
        "combinations": [
            combination("bf16 weights", (0.38, 0.83, 301e6), (0.401, 0.901, 310e6), 21.38),
            combination("int8 weights", (0.37, 0.46, 166e6), (0.389, 0.533, 172e6), 21.41, pareto=True),
            combination("int4 weights (groups of 32)", (0.4, 0.31, 104e6), (0.413, 0.358, 110e6), 22.96, True),
            combination(
                "int8 weights + prompt lookup (3-gram, 8 drafted)",
                (0.37, 0.29, 166e6),
                (0.392, 0.3127, 173e6),
                21.41,
                True,
            ),
            combination("int8 weights + int8 KV cache", (0.37, 0.44, 161e6), (0.397, 0.52, 167e6), 21.43, pareto=True),
            combination("drop 3 layers + int8 weights", (0.34, 0.42, 158e6), (0.352, 0.489, 163e6), 29.8, pareto=True),
            combination("sliding window of 256, 4 sinks", (0.39, 1.49, 556e6), (0.437, 1.577, 566e6), 21.9),
            combination("int4 weights (groups of 32) + int4 KV cache", (0.4, 0.3, 99e6)),
            combination("int2 weights", (0.4, 0.28, 90e6), failure="no kernel for 2 bits"),
        ],
        "skipped": {"drop 20 layers": "leaves fewer than 12 layers"},
        "kernels": {"unchanged": kernels(4), "best": kernels(1.06)},
        "notes": ["Measured while another process used 30 % of a core."],
    }
    return TuneResult(**{**facts, **changes})


@pytest.fixture
def result():
    return make_result()
