"""The few primitives that must be fast.

Each is one ``torch.library`` operator of the namespace ``hasten`` with a plain torch reference, a compiled
CPU version, a fake implementation for tracing, and autograd where training needs it. Without the compiled
part everything still works, slower, and says so once. A kernel is a file of this folder; all are imported, so that
their operators are there, and torch's counter of FLOPs knows them.
"""

from hasten.exports import Exports
from hasten.kernels.compiled import compiled_isa as compiled_isa
from hasten.kernels.compiled import native as native
from hasten.kernels.flop_counter import count_operators

_exports = Exports(__name__)
_exports.load()
count_operators()

__all__ = sorted(["compiled_isa", "native", *(m.rpartition(".")[2] for m in _exports.modules)])  # noqa: PLE0605
