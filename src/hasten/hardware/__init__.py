"""What it runs on: devices as data files, a catalogue of them, and a probe of this machine.

What this folder's files offer is here, imported when it is asked for: devices are read without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import Exports

if TYPE_CHECKING:
    from hasten.hardware.curve import Curve as Curve
    from hasten.hardware.device import CallCost as CallCost
    from hasten.hardware.device import ComputeUnit as ComputeUnit
    from hasten.hardware.device import Device as Device
    from hasten.hardware.device import Link as Link
    from hasten.hardware.device import MemoryLevel as MemoryLevel
    from hasten.hardware.device import devices as devices
    from hasten.hardware.device import load_device as load_device
    from hasten.hardware.device import one_of_each as one_of_each
    from hasten.hardware.device import read_device as read_device
    from hasten.hardware.probing import probe as probe
    from hasten.hardware.probing import remember as remember
    from hasten.hardware.quantity import Quantity as Quantity

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
