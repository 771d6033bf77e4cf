"""Blocks: ordinary ``torch.nn.Module`` parts from the literature.

Every public class of this folder's files is here, imported when it is asked for.
"""

from __future__ import annotations

from hasten.exports import Exports

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
