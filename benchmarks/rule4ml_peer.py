"""rule4ml's side of `hardware.py`: reads networks as JSON on stdin, predicts their circuits, writes figures as JSON.

Needs nothing but rule4ml (GPL-3.0, called and not copied) with what it needs, so that it can live in an environment of
its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from itertools import pairwise
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rule4ml.models.wrappers import MultiModelWrapper
from torch import nn

TARGETS = {"LUT": "lut", "FF": "ff", "DSP": "dsp", "BRAM": "bram", "CYCLES": "cycles"}


def network(widths: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def main() -> None:
    logging.disable(logging.CRITICAL)
    asked: dict[str, Any] = json.load(sys.stdin)
    with contextlib.redirect_stdout(io.StringIO()):
        estimator = MultiModelWrapper()
        estimator.load_default_models()
        found: dict[str, list[dict[str, float]]] = {version: [] for version in asked["versions"]}
        begun = time.process_time()
        for row in asked["networks"]:
            config = {
                "board": asked["board"],
                "model": {
                    "strategy": "Resource",
                    "precision": f"ap_fixed<{row['bits']}, 1>",
                    "reuse_factor": row["reuse"],
                },
            }
            for version, rows in found.items():
                said = estimator.predict(
                    [network(row["widths"])], hls_configs=[config], hls4ml_versions=[version],
                    vivado_versions=[asked["vivado"]], round_digits=6,
                )  # fmt: skip
                rows.append({ours: float(said[theirs].iloc[0]) for theirs, ours in TARGETS.items()})
                rows[-1]["bram"] /= 2  # of 18 Kb to of 36
        seconds = (time.process_time() - begun) / len(asked["networks"]) / len(found)
    json.dump({"rows": found, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
