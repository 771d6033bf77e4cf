"""What it runs on: devices as data files, a catalogue of them, and a probe of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.hardware.device import Device, devices, load_device
    from hasten.hardware.probing import probe

__all__ = ["Device", "devices", "load_device", "probe"]


def __getattr__(name: str) -> Any:
    if name in ("Device", "devices", "load_device"):
        from hasten.hardware import device

        return getattr(device, name)
    if name == "probe":
        from hasten.hardware.probing import probe

        return probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
