"""Blocks: ordinary ``torch.nn.Module`` parts from the literature.

Every public class of this folder's files is here, imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import Exports

# For type checkers alone, which read no folder: a test says what is missing.
if TYPE_CHECKING:
    from hasten.nn.analog import AnalogLinear as AnalogLinear
    from hasten.nn.analog import noisy_reads as noisy_reads
    from hasten.nn.attention import GroupedAttention as GroupedAttention
    from hasten.nn.attention import LatentAttention as LatentAttention
    from hasten.nn.attention import LayerCache as LayerCache
    from hasten.nn.attention import Rotary as Rotary
    from hasten.nn.block import undecayed as undecayed
    from hasten.nn.block_sparse import BlockCache as BlockCache
    from hasten.nn.block_sparse import Pattern as Pattern
    from hasten.nn.block_sparse import SinkWindow as SinkWindow
    from hasten.nn.block_sparse import VerticalStride as VerticalStride
    from hasten.nn.blockffn import AdaptiveFactor as AdaptiveFactor
    from hasten.nn.blockffn import BlockFFN as BlockFFN
    from hasten.nn.blockffn import Routed as Routed
    from hasten.nn.blockffn import TopKFFN as TopKFFN
    from hasten.nn.bmojo import BMojo as BMojo
    from hasten.nn.bmojo import BMojoState as BMojoState
    from hasten.nn.convolutional import FusedMBConv as FusedMBConv
    from hasten.nn.convolutional import MBConv as MBConv
    from hasten.nn.convolutional import SqueezeExcite as SqueezeExcite
    from hasten.nn.deformable import DeformableConv2d as DeformableConv2d
    from hasten.nn.denoising_blocks import MapCrossTransformer as MapCrossTransformer
    from hasten.nn.denoising_blocks import TimedConv as TimedConv
    from hasten.nn.elastic import ElasticMBConv as ElasticMBConv
    from hasten.nn.fake_quantization import SymmetricQuantizer as SymmetricQuantizer
    from hasten.nn.fake_quantization import fitted_threshold as fitted_threshold
    from hasten.nn.fake_quantization import requantize as requantize
    from hasten.nn.fake_quantization import requantizer as requantizer
    from hasten.nn.fake_quantization import round_through as round_through
    from hasten.nn.fake_quantization import rounded_to as rounded_to
    from hasten.nn.hourglass import Hourglass as Hourglass
    from hasten.nn.hourglass import Sizes as Sizes
    from hasten.nn.hyper_kernels import ContextKernel as ContextKernel
    from hasten.nn.hyper_kernels import HyperKernel as HyperKernel
    from hasten.nn.hyper_kernels import InstanceStandardized as InstanceStandardized
    from hasten.nn.hyper_kernels import RecursiveGate as RecursiveGate
    from hasten.nn.hyper_kernels import SlowFastBlock as SlowFastBlock
    from hasten.nn.lowtention import Lowtention as Lowtention
    from hasten.nn.lowtention import MapAttention as MapAttention
    from hasten.nn.mamba import Mamba as Mamba
    from hasten.nn.mamba import MambaState as MambaState
    from hasten.nn.map_transformer import MapTransformer as MapTransformer
    from hasten.nn.mask_unit import MaskUnitAttention as MaskUnitAttention
    from hasten.nn.mask_unit import MaskUnitBlock as MaskUnitBlock
    from hasten.nn.mixed_edge import MixedEdge as MixedEdge
    from hasten.nn.mixed_edge import MixedNetwork as MixedNetwork
    from hasten.nn.mlgru import MLGRU as MLGRU
    from hasten.nn.mlgru import TernaryGLU as TernaryGLU
    from hasten.nn.moe import BiasController as BiasController
    from hasten.nn.moe import GatedExperts as GatedExperts
    from hasten.nn.moe import MixtureOfExperts as MixtureOfExperts
    from hasten.nn.moe import Router as Router
    from hasten.nn.moe import Routing as Routing
    from hasten.nn.naive_rational import NaiveRational as NaiveRational
    from hasten.nn.packed import PackedEmbedding as PackedEmbedding
    from hasten.nn.packed import PackedLinear as PackedLinear
    from hasten.nn.packed import PackedWeight as PackedWeight
    from hasten.nn.packed_experts import ClampedGate as ClampedGate
    from hasten.nn.packed_experts import ExpertWeights as ExpertWeights
    from hasten.nn.packed_experts import PackedGatedExperts as PackedGatedExperts
    from hasten.nn.packed_experts import PackedMatrices as PackedMatrices
    from hasten.nn.parallel_residual import GroupSum as GroupSum
    from hasten.nn.parallel_residual import ResidualBranch as ResidualBranch
    from hasten.nn.parallel_residual import ResidualStack as ResidualStack
    from hasten.nn.parallel_residual import TaylorGap as TaylorGap
    from hasten.nn.parallel_residual import fuse_parallel as fuse_parallel
    from hasten.nn.parallel_residual import taylor_gap as taylor_gap
    from hasten.nn.parallel_residual import to_parallel as to_parallel
    from hasten.nn.rational import GroupRational as GroupRational
    from hasten.nn.rational import GroupRationalMLP as GroupRationalMLP
    from hasten.nn.reglu_experts import Activation as Activation
    from hasten.nn.reglu_experts import Expert as Expert
    from hasten.nn.reglu_experts import ReGLUExperts as ReGLUExperts
    from hasten.nn.reglu_experts import balance_loss as balance_loss
    from hasten.nn.reglu_experts import route as route
    from hasten.nn.reglu_experts import sparse_rows as sparse_rows
    from hasten.nn.reservoir import EventRun as EventRun
    from hasten.nn.reservoir import Reservoir as Reservoir
    from hasten.nn.s5 import S5 as S5
    from hasten.nn.states import Stepped as Stepped
    from hasten.nn.ternary import BitLinear as BitLinear
    from hasten.nn.ternary import TernaryLinear as TernaryLinear

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
