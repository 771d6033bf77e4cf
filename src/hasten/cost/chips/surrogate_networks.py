"""Networks that read a circuit layer by layer: by attention over its graph, and as a transformer over its layers.

The two surrogates of wa-hls4ml (arXiv 2511.05615, sections 4.1 and 4.2), smaller: hundreds of circuits are learned
from here, not hundreds of thousands. Ours alone is that some outputs are logarithms of sums over layers: what a circuit
takes is what its layers take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.cost.chips.design_features import LayerBatch
from hasten.errors import HastenError


class GraphAttention(nn.Module):
    """Graph attention whose weights depend on both ends (GATv2, arXiv 2105.14491), heads side by side.

    Each node attends to itself and to the nodes that have an edge to it.

    Args:
        width: of a node, in and out; the heads divide it.
        heads: of them.

    Raises:
        HastenError: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise HastenError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.source, self.target = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.xavier_uniform_(self.attention)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Nodes (count, nodes, width) to the same; edges bool (count, nodes, nodes), a row hears its columns."""
        count, nodes, width = x.shape
        source = self.source(x).view(count, nodes, self.heads, -1)
        target = self.target(x).view(count, nodes, self.heads, -1)
        both = F.leaky_relu(target[:, :, None] + source[:, None], 0.2)  # hearing node, heard node
        scores = (both * self.attention).sum(-1)
        heard = edges | torch.eye(nodes, dtype=torch.bool, device=x.device)
        weights = scores.masked_fill(~heard[..., None], -torch.inf).softmax(2)
        made: Tensor = torch.einsum("bijh,bjhw->bihw", weights, source).reshape(count, nodes, width)
        return made


class SumOfLayers(nn.Module):
    """Logarithms of sums over layers, each layer's part a line through its numbers and a little of what was read.

    Args:
        features: of a layer.
        width: of what was read of it.
        sums: that are made.
    """

    def __init__(self, features: int, width: int, sums: int) -> None:
        super().__init__()
        self.plain, self.read = nn.Linear(features, sums), nn.Linear(width, sums, bias=False)
        for weight in (self.plain.weight, self.plain.bias, self.read.weight):
            nn.init.zeros_(weight)

    def forward(self, features: Tensor, read: Tensor, present: Tensor) -> Tensor:
        """(count, layers, features), (count, layers, width) and bool (count, layers) to (count, sums)."""
        parts = self.plain(features) + self.read(read)
        made: Tensor = parts.masked_fill(~present[..., None], -torch.inf).logsumexp(1)
        return made


class LayerGraphNetwork(nn.Module):
    """A circuit as a graph: attention along its edges, and a learned mix of the sum, mean and greatest of its nodes.

    Args:
        features: of a node.
        overall: numbers of the whole circuit.
        outputs: numbers that are answered.
        sums: of them, the first so many are logarithms of sums over layers, corrected.
        width: of a node within.
        heads, layers: of attention.
        dropout: of a node's numbers.
    """

    def __init__(
        self, features: int, overall: int, outputs: int, sums: int = 0, *, width: int = 32, heads: int = 4,
        layers: int = 3, dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sums = SumOfLayers(features, width, sums) if sums else None
        self.input = nn.Linear(features, width)
        self.attentions = nn.ModuleList(GraphAttention(width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Parameter(torch.zeros(3))
        self.head = nn.Sequential(
            nn.Linear(width + overall, width), nn.ELU(), nn.Linear(width, width), nn.ELU(), nn.Linear(width, outputs)
        )

    def forward(self, batch: LayerBatch) -> Tensor:
        """(count, outputs); nodes may stand in any order, and absent ones change nothing."""
        present = batch.present[..., None]
        edges = batch.edges & batch.present[:, None] & batch.present[..., None]
        x = F.elu(self.input(batch.features))
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            x = x + self.dropout(F.elu(norm(attention(x, edges))))
        kept = x * present
        total = kept.sum(1)
        pools = (total, total / present.sum(1).clamp_min(1), x.masked_fill(~present, -torch.inf).amax(1))
        shares = self.mix.softmax(0)
        pooled = sum((share * pool for share, pool in zip(shares, pools, strict=True)), torch.zeros_like(total))
        made: Tensor = self.head(torch.cat([pooled, batch.overall], -1))
        return made if self.sums is None else _with_sums(made, self.sums(batch.features, x, batch.present))


def _with_sums(made: Tensor, sums: Tensor) -> Tensor:
    """Outputs (count, outputs) of which the first correct sums (count, sums), by a tenth at first."""
    count = sums.shape[-1]
    return torch.cat([sums + 0.1 * made[:, :count], made[:, count:]], -1)


class LayerTransformer(nn.Module):
    """A circuit as a sequence: a token a layer with a learned position, and one before them that answers.

    Args:
        features: of a layer.
        outputs: numbers that are answered.
        sums: of them, the first so many are logarithms of sums over layers, corrected.
        width, heads, layers, inner: of the encoder, normalised behind.
        dropout: of it.
        most: layers of a circuit.
    """

    def __init__(
        self, features: int, outputs: int, sums: int = 0, *, width: int = 32, heads: int = 4, layers: int = 2,
        inner: int = 64, dropout: float = 0.1, most: int = 50,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sums = SumOfLayers(features, width, sums) if sums else None
        self.most = most
        self.input = nn.Linear(features, width)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, most + 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, inner, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, outputs)

    def forward(self, batch: LayerBatch) -> Tensor:
        """(count, outputs); absent layers behind the others change nothing.

        Raises:
            HastenError: a circuit has more layers than there are positions.
        """
        count, layers = batch.present.shape
        if layers > self.most:
            raise HastenError(f"a circuit has {layers} layers: this network has positions for {self.most}")
        x = torch.cat([self.first.expand(count, 1, -1), self.input(batch.features)], 1)
        x = x + self.positions[:, : layers + 1]
        absent = torch.cat([batch.present.new_zeros(count, 1), ~batch.present], 1)
        read = self.encoder(x, src_key_padding_mask=absent)
        made: Tensor = self.output(read[:, 0])
        return made if self.sums is None else _with_sums(made, self.sums(batch.features, read[:, 1:], batch.present))
