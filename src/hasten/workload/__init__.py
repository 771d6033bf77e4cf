"""What is computed: extended-Einsum cascades, workloads, and tracing them from a torch module."""

from hasten.workload.decoder import DecoderSizes
from hasten.workload.einsum import Access, Cascade, Einsum, Group, Op, Phase, Role, Tensor, Workload
from hasten.workload.language import language_model
from hasten.workload.operators import Call, register
from hasten.workload.passes import FusedGroup, PassReport, fuse, traffic
from hasten.workload.recorder import Recorder
from hasten.workload.tracing import Traced, trace, trace_cascade, weight_bytes

__all__ = [
    "Access",
    "Call",
    "Cascade",
    "DecoderSizes",
    "Einsum",
    "FusedGroup",
    "Group",
    "Op",
    "PassReport",
    "Phase",
    "Recorder",
    "Role",
    "Tensor",
    "Traced",
    "Workload",
    "fuse",
    "language_model",
    "register",
    "trace",
    "trace_cascade",
    "traffic",
    "weight_bytes",
]
