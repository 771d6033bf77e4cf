"""The five kernels of InTAR and a block of GPT-2 medium, as cascades: small and large tensors follow each other.

Shapes are those of arXiv 2502.08807 and its repository, in 16 bits. Their cycles by the bounds of the published loops
stand beside them, stage by stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hasten.errors import HastenError
from hasten.workload.einsum import Cascade
from hasten.workload.notation import parse_cascade
from hasten.workload.streaming import work_graph
from hasten.workload.work_graph import WorkGraph

_ATTENTION = """
ranks n=256, m=256, k=1024, e=1024, f=1024
input X[n, k] int16
weight WQ[k, e] int16
weight WK[k, e] int16
weight WV[k, f] int16
output O
Q[n, e] = sum(k) X[n, k] * WQ[k, e]
K[m, e] = sum(k) X[m, k] * WK[k, e]
V[m, f] = sum(k) X[m, k] * WV[k, f]
S[n, m] = sum(e) Q[n, e] * K[m, e]
T[n] = max(m) S[n, m]
P[n, m] = sub-exp(S[n, m], T[n])
D[n] = sum(m) P[n, m]
A[n, m] = P[n, m] / D[n]
O[n, f] = sum(m) A[n, m] * V[m, f]
"""
_MLP = """
ranks a=256, b=1024, c=2048, d=256
input X[a] int16
weight W1[a, b] int16
weight W2[b, c] int16
weight W3[c, d] int16
output Y
L1[b] = sum(a) X[a] * W1[a, b]
H1[b] = relu(L1[b])
L2[c] = sum(b) H1[b] * W2[b, c]
H2[c] = relu(L2[c])
Y[d] = sum(c) H2[c] * W3[c, d]
"""
_GATED = """
ranks n={n}, k={k}, h={h}, o={k}
input X[n, k] {dtype}
weight WG[k, h] {dtype}
weight WU[k, h] {dtype}
weight WD[h, o] {dtype}
output Y
G[n, h] = sum(k) X[n, k] * WG[k, h]
Z[n, h] = silu(G[n, h])
U[n, h] = sum(k) X[n, k] * WU[k, h]
M[n, h] = times(Z[n, h], U[n, h])
Y[n, o] = sum(h) M[n, h] * WD[h, o]
"""


def _convolution(layer: int, source: str, side: int, after: str) -> str:
    """A 3x3 convolution of one channel, then every pixel four times (``up``) or the largest of four (``down``)."""
    i, j = f"i{layer}", f"j{layer}"
    text = f"""
ranks {i}={side}, {j}={side}, r=3, s=3, y{layer}={side // 2}, x{layer}={side // 2}, p=2, q=2
weight W{layer}[r, s] int16
C{layer}[{i}, {j}] = sum(r, s) {source}[{i}+r-1, {j}+s-1 | 0] * W{layer}[r, s] {{op conv}}
"""
    if after == "up":
        return text + f"F{layer}[2*{i}+p, 2*{j}+q] = C{layer}[{i}, {j}]\n"
    return text + f"F{layer}[y{layer}, x{layer}] = max(p, q) C{layer}[2*y{layer}+p, 2*x{layer}+q]\n"


_CNN = (
    "ranks i=224, j=224\ninput F0[i, j] int16\noutput F4\n"
    + _convolution(1, "F0", 224, "up")
    + _convolution(2, "F1", 448, "up")
    + _convolution(3, "F2", 896, "down")
    + _convolution(4, "F3", 448, "down")
)
_VAE = """
ranks c=2, i=28, j=28, i1=21, j1=21, i2=18, j2=18, i3=21, j3=21, i4=28, j4=28, r=8, s=8, u=4, v=4
input X[c, i, j] int16
weight W1[c, r, s] int16
weight W2[u, v] int16
weight W3[u, v] int16
weight W4[c, r, s] int16
output Y
E1[i1, j1] = sum(c, r, s) X[c, i1+r, j1+s] * W1[c, r, s] {op conv}
Z[i2, j2] = sum(u, v) E1[i2+u, j2+v] * W2[u, v] {op conv}
D1[i3, j3] = sum(u, v) Z[i3-u, j3-v | 0] * W3[u, v] {op conv}
Y[c, i4, j4] = sum(r, s) D1[i4-r, j4-s | 0] * W4[c, r, s] {op conv}
"""
_GPT2 = """
ranks n=1024, m=1024, k=1024, h=16, e=64, f=64, o=1024, a=4096, d=1024
input X[n, k] int16
weight WQ[k, h, e] int16
weight WK[k, h, e] int16
weight WV[k, h, f] int16
weight WO[h, f, o] int16
weight W1[o, a] int16
weight W2[a, d] int16
output Y
N1[n] = sum(k) square(X[n, k])
X1[n, k] = X[n, k] / N1[n]
Q[n, h, e] = sum(k) X1[n, k] * WQ[k, h, e]
K[m, h, e] = sum(k) X1[m, k] * WK[k, h, e]
V[m, h, f] = sum(k) X1[m, k] * WV[k, h, f]
S[h, n, m] = sum(e) Q[n, h, e] * K[m, h, e]
T[h, n] = max(m) S[h, n, m]
P[h, n, m] = sub-exp(S[h, n, m], T[h, n])
D[h, n] = sum(m) P[h, n, m]
A[h, n, m] = P[h, n, m] / D[h, n]
C[n, h, f] = sum(m) A[h, n, m] * V[m, h, f]
L[n, o] = sum(h, f) C[n, h, f] * WO[h, f, o]
R[n, o] = L[n, o] + X[n, o]
N2[n] = sum(o) square(R[n, o])
X2[n, o] = R[n, o] / N2[n]
G[n, a] = sum(o) X2[n, o] * W1[o, a]
H[n, a] = gelu(G[n, a])
B[n, d] = sum(a) H[n, a] * W2[a, d]
Y[n, d] = B[n, d] + R[n, d]
"""
_TEXTS = {
    "self-attention": _ATTENTION,
    "mlp": _MLP,
    "gated-ffn": _GATED.format(n=32, k=4096, h=11008, dtype="int16"),
    "cnn-4l": _CNN,
    "vae": _VAE,
    "gpt2-medium": _GPT2,
}
VARIED_KERNELS = tuple(_TEXTS)
"""Names of the kernels: the five of the paper, and a block of GPT-2 medium over 1024 tokens."""


def varied_kernel(name: str) -> Cascade:
    """A kernel as a cascade.

    Raises:
        HastenError: an unknown name.
    """
    if name not in _TEXTS:
        raise HastenError(f"there is no kernel {name[:20]!r}: use {', '.join(VARIED_KERNELS)}")
    return parse_cascade(_TEXTS[name])


def varied_graph(name: str) -> WorkGraph:
    """A kernel as a graph of tasks.

    Raises:
        HastenError: an unknown name.
    """
    return work_graph(varied_kernel(name), name)


_ATTENTION_PART = """
ranks n={n}, m={n}, k={k}, g={g}, r={r}, e={e}, f={e}, o={k}
input X[n, k] {dtype}
weight WQ[k, g, r, e] {dtype}
weight WK[k, g, e] {dtype}
weight WV[k, g, f] {dtype}
weight WO[g, r, f, o] {dtype}
output Y
Q[n, g, r, e] = sum(k) X[n, k] * WQ[k, g, r, e]
K[m, g, e] = sum(k) X[m, k] * WK[k, g, e]
V[m, g, f] = sum(k) X[m, k] * WV[k, g, f]
S[n, g, r, m] = sum(e) Q[n, g, r, e] * K[m, g, e]
T[n, g, r] = max(m) S[n, g, r, m]
P[n, g, r, m] = sub-exp(S[n, g, r, m], T[n, g, r])
D[n, g, r] = sum(m) P[n, g, r, m]
A[n, g, r, m] = P[n, g, r, m] / D[n, g, r]
C[n, g, r, f] = sum(m) A[n, g, r, m] * V[m, g, f]
Y[n, o] = sum(g, r, f) C[n, g, r, f] * WO[g, r, f, o]
"""
_PARTS = {"feed-forward": _GATED, "attention": _ATTENTION_PART}
LAYER_PARTS = tuple(_PARTS)
"""Parts of a decoder's layer, in 32 bits."""


def layer_part(name: str, sizes: Mapping[str, int]) -> Cascade:
    """A part of a decoder's layer as a cascade, attention without mask, rotation and scale.

    Args:
        name: one of `LAYER_PARTS`.
        sizes: ``n`` tokens, ``k`` hidden channels, ``h`` inner ones, ``g`` groups of ``r`` heads of ``e`` channels.

    Raises:
        HastenError: an unknown name.
    """
    if name not in _PARTS:
        raise HastenError(f"there is no part {name[:20]!r} of a layer: use {', '.join(LAYER_PARTS)}")
    return parse_cascade(_PARTS[name].format(**sizes, dtype="fp32"))


@dataclass(frozen=True)
class LoopBound:
    """Loops of one core in one stage: ``blocks`` times a load and ``rows`` times an inner loop.

    Args:
        task: what it computes.
        stage, core: when and where.
        blocks, rows, inner: trips, the outermost first.
        load: cycles before the rows of a block.
    """

    task: str
    stage: int
    core: int
    blocks: int
    rows: int
    inner: int
    load: int = 0

    @property
    def cycles(self) -> int:
        return self.blocks * (self.load + self.rows * self.inner)


# Read from the kernels of the repository: trips of the loops as they are written there.
PUBLISHED_LOOPS: dict[str, tuple[LoopBound, ...]] = {
    "self-attention": (
        LoopBound("Q", 0, 0, 32, 256, 1024, 1024),
        LoopBound("Q", 0, 1, 32, 256, 1024, 1024),
        LoopBound("K", 1, 1, 64, 256, 1024, 1024),
        LoopBound("S", 1, 0, 256, 256, 80, 64),
        LoopBound("V", 2, 0, 32, 256, 1024, 1024),
        LoopBound("V", 2, 1, 32, 256, 1024, 1024),
        LoopBound("O", 3, 0, 32, 256, 256),
        LoopBound("O", 3, 1, 32, 256, 256),
    ),
    "mlp": (
        LoopBound("L1", 0, 0, 32, 1, 256),
        LoopBound("L1", 0, 1, 32, 1, 256),
        LoopBound("L2", 1, 0, 128, 1, 1024),
        LoopBound("Y", 1, 1, 128, 1, 256),
    ),
    "cnn-4l": (
        LoopBound("C1", 0, 0, 1, 224, 14),
        LoopBound("C2", 0, 1, 1, 448, 28),
        LoopBound("C3", 0, 2, 1, 896, 56),
        *(LoopBound("C4", 1, core, 1, 150, 28) for core in range(3)),
    ),
}

MEASURED_CYCLES: dict[str, tuple[int, int, int]] = {
    "self-attention": (40_520_051, 73_143_507, 348_574_419),
    "mlp": (140_957, 181_996, 1_374_935),
    "cnn-4l": (118_729, 713_144, 2_215_282),
    "vae": (10_295, 28_383, 306_935),
    "gated-ffn": (48_668_637, 48_668_637, 117_702_892),
}
"""Cycles measured on an Alveo U280: reconfigurable, dataflow, sequential."""


def published_cycles(name: str) -> int:
    """Cycles of a kernel by the bounds of its published loops: of each stage the core that takes the longest.

    Raises:
        HastenError: a kernel whose loops are not here.
    """
    if name not in PUBLISHED_LOOPS:
        raise HastenError(f"no published loops of {name[:20]!r} are here: use {', '.join(PUBLISHED_LOOPS)}")
    stages: dict[int, int] = {}
    for loop in PUBLISHED_LOOPS[name]:
        stages[loop.stage] = max(stages.get(loop.stage, 0), loop.cycles)
    return sum(stages.values())
