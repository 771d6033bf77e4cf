"""aihwkit's side of `hardware.py`: reads a layer from an .npz file, computes it on an analogue tile, writes what came.

Needs torch and aihwkit (``pip install --no-deps --only-binary :all: aihwkit`` beside any torch): its tiles of plain
torch are asked.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType


def layer(asked: dict[str, float], weight: torch.Tensor) -> AnalogLinear:
    """Codes of inputs by a row's largest, sums cut off at a bound and rounded, one tile, nothing that is random."""
    config = TorchInferenceRPUConfig()
    config.forward.inp_res = 1 / (2 ** asked["input_bits"] - 2)
    config.forward.out_res = 1 / (2 ** asked["adc_bits"] - 2)
    config.forward.out_noise, config.forward.out_bound = 0.0, asked["bound"]
    config.forward.noise_management = NoiseManagementType.ABS_MAX
    config.forward.bound_management = BoundManagementType.NONE
    config.mapping.weight_scaling_omega = 0.0
    config.mapping.weight_scaling_columnwise = False
    config.mapping.max_input_size = config.mapping.max_output_size = 0
    made = AnalogLinear(weight.shape[1], weight.shape[0], bias=False, rpu_config=config)
    made.set_weights(weight, None)
    return made.eval()


def main() -> None:
    torch.set_num_threads(1)
    asked = json.load(sys.stdin)
    given = np.load(asked["given"])
    weight, x = torch.from_numpy(given["weight"]), torch.from_numpy(given["x"])
    made = layer(asked, weight)
    with torch.no_grad():
        found = made(x)
        best = float("inf")
        for _ in range(asked["times"]):
            begun = time.thread_time()
            made(x)
            best = min(best, time.thread_time() - begun)
    np.save(asked["found"], found.numpy())
    json.dump({"seconds": best}, sys.stdout)


if __name__ == "__main__":
    main()
