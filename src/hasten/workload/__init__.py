"""What is computed: extended-Einsum cascades, workloads, and tracing them from a torch module."""

from hasten.workload.decoder import DecoderSizes
from hasten.workload.einsum import Access, Cascade, Einsum, Group, Op, Phase, Role, Tensor, Workload
from hasten.workload.index import AffineIndex
from hasten.workload.language import language_model
from hasten.workload.notation import format_cascade, format_einsum, parse_cascade
from hasten.workload.operators import Call, register
from hasten.workload.passes import FusedGroup, PassReport, fuse, traffic
from hasten.workload.recorder import Recorder
from hasten.workload.tracing import Traced, trace, trace_cascade, weight_bytes

__all__ = [
    "Access",
    "AffineIndex",
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
    "format_cascade",
    "format_einsum",
    "fuse",
    "language_model",
    "parse_cascade",
    "register",
    "trace",
    "trace_cascade",
    "traffic",
    "weight_bytes",
]
