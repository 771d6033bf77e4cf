"""What it runs on: devices as data files, a catalogue of them, and a probe of this machine."""

from hasten.hardware.curve import Curve
from hasten.hardware.device import ComputeUnit, Device, Link, MemoryLevel, devices, load_device, read_device
from hasten.hardware.probing import probe, remember
from hasten.hardware.quantity import Quantity

__all__ = [
    "ComputeUnit",
    "Curve",
    "Device",
    "Link",
    "MemoryLevel",
    "Quantity",
    "devices",
    "load_device",
    "probe",
    "read_device",
    "remember",
]
