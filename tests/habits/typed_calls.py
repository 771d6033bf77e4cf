"""What type checkers say that blocks and networks answer: read by mypy (`make lint`), never run."""

from __future__ import annotations

from typing import Any, assert_type

from torch import Tensor
from torch import nn as tnn

from hasten import models, nn
from hasten.nn.moe import Routing


def blocks(x: Tensor, ids: Tensor, picture: Tensor) -> None:
    assert_type(nn.BMojo(32)(x), Tensor)
    assert_type(nn.BitLinear(32, 24)(x), Tensor)
    assert_type(nn.BlockFFN(32, 8, 4)(x), Tensor)
    assert_type(nn.BlockFFN(32, 8, 4)(x, return_routing=True), tuple[Tensor, Routing])
    assert_type(nn.ContextKernel(4, 3)(picture), Tensor)
    assert_type(nn.ElasticMBConv(8, 8, (3, 5), (2, 3), 1, "relu", True)(picture, 3, 2), Tensor)
    assert_type(nn.Expert(32, 24)(x), Tensor)
    assert_type(nn.FusedMBConv(8, 8, 16)(picture), Tensor)
    assert_type(nn.GatedExperts(32, 24, 4)(x), Tensor)
    assert_type(nn.GroupRational(32, 4)(x), Tensor)
    assert_type(nn.GroupRationalMLP(32)(x), Tensor)
    assert_type(nn.GroupedAttention(32, heads=4)(x), Tensor)
    assert_type(nn.Hourglass(32, hidden=8, layers=2)(x), Tensor)
    latent = nn.LatentAttention(32, heads=2, plain=8, rotated=8, value=8, query_rank=12, latent=16, rotary=nn.Rotary(8))
    assert_type(latent(x), Tensor)
    assert_type(nn.HyperKernel(4, 3)(picture), Tensor)
    assert_type(nn.Lowtention(32)(picture), Tensor)
    assert_type(nn.MBConv(8, 8, 16, 3, 1, "relu", True)(picture), Tensor)
    assert_type(nn.MapAttention(32)(picture), Tensor)
    assert_type(nn.MaskUnitAttention(32, 32)(x), Tensor)
    assert_type(nn.MaskUnitBlock(32, 32)(x), Tensor)
    assert_type(nn.MapCrossTransformer(32)(picture), Tensor)
    assert_type(nn.TimedConv(32, 32, 8)(picture, x), Tensor)
    assert_type(nn.MapTransformer(32, 32)(picture), Tensor)
    assert_type(nn.MLGRU(32)(x), tuple[Tensor, Tensor])
    assert_type(nn.Mamba(32)(x), Tensor)
    assert_type(nn.MixedEdge([tnn.Identity()])(picture), Tensor)
    assert_type(nn.MixtureOfExperts(32, 24, 4, 2)(x), Tensor)
    assert_type(nn.MixtureOfExperts(32, 24, 4, 2)(x, return_routing=True), tuple[Tensor, Routing])
    assert_type(nn.NaiveRational(nn.GroupRational(32, 4))(x), Tensor)
    assert_type(nn.PackedEmbedding(40, 32)(ids), Tensor)
    assert_type(nn.PackedLinear.from_linear(tnn.Linear(32, 24), 4)(x), Tensor)
    assert_type(nn.PackedGatedExperts(4, 32, 64)(x[0], ids, x[0, :, :2]), Tensor)
    assert_type(nn.ResidualBranch(tnn.Linear(32, 32))(x), Tensor)
    assert_type(nn.GroupSum(2, -1)(x), Tensor)
    assert_type(nn.ResidualStack([tnn.Linear(32, 32)])(x), Tensor)
    assert_type(nn.ReGLUExperts(32, 24, 4, 2)(x, x), Tensor)
    assert_type(nn.Router(32, 4, 2)(x), tuple[Tensor, Tensor, Tensor])
    assert_type(nn.S5(32, 8)(x), tuple[Tensor, Tensor])
    assert_type(nn.RecursiveGate(8, 5)(picture), Tensor)
    assert_type(nn.SlowFastBlock(12, 5, 1)(picture), Tensor)
    assert_type(nn.SqueezeExcite(16)(picture), Tensor)
    assert_type(nn.Stepped(nn.Mamba(32))(x, None), tuple[Any, Any])
    assert_type(nn.TernaryGLU(32)(x), Tensor)
    assert_type(nn.BitLinear(32, 24).pack()(x), Tensor)
    assert_type(nn.TernaryLinear(32, 24)(x), Tensor)
    assert_type(nn.TopKFFN(32, 8, 4, 2)(x), Tensor)


def networks(
    ids: Tensor, picture: Tensor, x: Tensor, cells: models.CellNetwork, block: models.ChainBlock,
    chain: models.MobileChain, elastic: models.OnceForAll, part: models.SubNetwork, thinker: models.SmallThinkerLM,
    layer: models.Layer, encoder: models.BottleneckEncoder,
) -> None:  # fmt: skip
    assert_type(models.AsCAN()(picture), Tensor)
    assert_type(models.AsCANUNet()(picture, 3), models.UNetOutput)
    assert_type(models.AsCAN().features_only()(picture), tuple[Tensor, ...])
    maps: models.FeatureMaps = models.LowFormer().features_only()
    assert_type(maps(picture), tuple[Tensor, ...])
    assert_type(models.FeaturePyramid((8,))(picture), tuple[Tensor, ...])
    assert_type(models.SemanticFPN(maps, 5)(picture), Tensor)
    assert_type(models.PyramidDetector(maps, 5)(picture), models.Detections)
    backbone: models.Backbone = models.LowFormer()
    assert_type(backbone(picture), Tensor)
    assert_type(models.LowFormerBlock(8, 2, 3, fused=True)(picture), Tensor)
    assert_type(models.DartsNetwork()(picture), Tensor)
    assert_type(models.DartsCell(models.CellPlace(8, 8, 4, 4, True, True), ())(picture, picture), Tensor)
    assert_type(models.ProxylessNet()(picture), Tensor)
    assert_type(models.ProxylessSuperNet(models.ProxylessConfig())(picture), Tensor)
    assert_type(models.DenseLayer(8, 4)(picture), Tensor)
    assert_type(models.SimpleNet(models.SimpleNetConfig("8"))(picture), Tensor)
    assert_type(models.BMojoLM(models.BMojoConfig())(ids), Tensor)
    experts = models.BlockFFNLM(models.BlockFFNConfig())
    assert_type(experts(ids), Tensor)
    assert_type(experts(ids, return_routing=True), tuple[Tensor, list[Routing]])
    assert_type(encoder(ids), Tensor)
    assert_type(models.BottleneckLayer(encoder.config)(x), Tensor)
    assert_type(cells(picture), Tensor)
    assert_type(block(picture), Tensor)
    assert_type(models.HeadPredictor(32, 40)(x), Tensor)
    assert_type(models.KAT(models.KATConfig())(picture), Tensor)
    assert_type(layer(x, None), Tensor)
    assert_type(models.MambaLM(models.MambaConfig())(ids), Tensor)
    assert_type(models.MatMulFreeLM(models.MatMulFreeConfig())(ids), Tensor)
    assert_type(chain(picture), Tensor)
    assert_type(elastic(picture), Tensor)
    assert_type(models.ResidualConvNet(5, 3, 8, 4, 2)(picture), Tensor)
    assert_type(models.BasicBlock(8, 8)(picture), Tensor)
    assert_type(models.ResNet(5, 3)(picture), Tensor)
    assert_type(models.ResNet9(5, 3, 4, (8,), (1,))(picture), Tensor)
    assert_type(thinker(ids), Tensor)
    assert_type(thinker(ids, return_routing=True), tuple[Tensor, list[Routing]])
    assert_type(part(picture), Tensor)
    assert_type(models.Terminator(models.TerminatorConfig())(picture), Tensor)
    assert_type(models.TokenEmbedding(encoder.config)(ids), Tensor)
