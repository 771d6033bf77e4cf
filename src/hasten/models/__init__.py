"""Whole networks, and loaders for real pretrained ones.

What this folder's files offer is here, imported when it is asked for; published models are built by name in
`hasten.models.named`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import Exports

if TYPE_CHECKING:
    from hasten.models.loading.network import load_network as load_network
    from hasten.models.loading.network import load_packed as load_packed

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
