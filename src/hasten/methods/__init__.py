"""Changes to a given model: each is applied to the real module and to its description alike.

Every file of this folder is imported, so that its methods are known; its public classes are here.
"""

from __future__ import annotations

from hasten.exports import Exports
from hasten.methods.method import apply_all as apply_all
from hasten.methods.method import clash as clash
from hasten.methods.method import from_dict as from_dict
from hasten.methods.method import ordered as ordered
from hasten.methods.method import registry as registry
from hasten.methods.method import rewrite_all as rewrite_all
from hasten.methods.method import unwritable as unwritable

_exports = Exports(__name__, ("apply_all", "clash", "from_dict", "ordered", "registry", "rewrite_all", "unwritable"))
_exports.load()

__getattr__ = _exports.find
__dir__ = _exports.names
