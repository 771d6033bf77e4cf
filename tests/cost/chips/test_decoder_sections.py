from __future__ import annotations

import pytest

from hasten.cost.chips.decoder_sections import layer_costs
from hasten.cost.chips.sections import LAUNCHERS
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import streaming_chip


def test_a_layer_is_one_launch_of_a_token_and_fusing_never_costs() -> None:
    chip = streaming_chip("sn40l").node(8)
    for phase, costs in layer_costs("llama-2-7b", chip, prompt=512).items():
        for launcher in LAUNCHERS:
            unfused, fused = costs[f"unfused {launcher}"], costs[f"fused {launcher}"]
            assert unfused.latency > fused.latency
            assert unfused.flops == fused.flops
            assert unfused.bytes["memory"] > fused.bytes["memory"]
        assert costs["fused software"].latency > costs["fused hardware"].latency
        assert costs["unfused software"].launches > 10 * costs["fused software"].launches
        assert costs["fused hardware"].launches == 1
        assert phase == "prefill" or costs["fused software"].launches == 32
    # Weights of the layers, and keys and values of 512 positions, once.
    weights = 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert costs["fused hardware"].bytes["memory"] == pytest.approx(32 * (weights + 2 * 2 * 512 * 4096), rel=0.02)
    with pytest.raises(HastenError, match="no sizes"):
        layer_costs("gpt", chip)
