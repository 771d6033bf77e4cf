"""Running a language model token by token: caches, the compiled step, generation, speculative drafts.

What this folder's files offer is here, imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import Exports

if TYPE_CHECKING:
    from hasten.runtime.language_model import LanguageModel as LanguageModel

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
