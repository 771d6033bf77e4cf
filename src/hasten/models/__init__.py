"""Whole networks, and loaders for real pretrained ones.

What this folder's files offer is here, imported when it is asked for; published models are built by name in
`hasten.models.named`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import Exports

# For type checkers alone, which read no folder: a test says what is missing.
if TYPE_CHECKING:
    from hasten.models.attention_heads import AttentionLayer as AttentionLayer
    from hasten.models.attention_heads import attention_layers as attention_layers
    from hasten.models.attention_heads import heads_masked as heads_masked
    from hasten.models.attention_heads import prune_heads as prune_heads
    from hasten.models.decoder import Decoder as Decoder
    from hasten.models.decoder import DecoderLayer as DecoderLayer
    from hasten.models.decoder import HasLayout as HasLayout
    from hasten.models.decoder import Layout as Layout
    from hasten.models.decoder_form import DecoderForm as DecoderForm
    from hasten.models.decoder_form import GatedFeedForward as GatedFeedForward
    from hasten.models.decoder_form import LayerForm as LayerForm
    from hasten.models.decoder_form import RotaryForm as RotaryForm
    from hasten.models.decoder_form import RowNorm as RowNorm
    from hasten.models.decoder_form import WeightRows as WeightRows
    from hasten.models.description.architecture import Way as Way
    from hasten.models.description.kept import Store as Store
    from hasten.models.description.recurrences import Recurrences as Recurrences
    from hasten.models.generation.ascan_unet import AsCANUNet as AsCANUNet
    from hasten.models.generation.ascan_unet import AsCANUNetConfig as AsCANUNetConfig
    from hasten.models.generation.ascan_unet import UNetOutput as UNetOutput
    from hasten.models.generation.noise import NoiseSchedule as NoiseSchedule
    from hasten.models.language.blockffn_lm import BlockFFNConfig as BlockFFNConfig
    from hasten.models.language.blockffn_lm import BlockFFNLM as BlockFFNLM
    from hasten.models.language.bmojo_lm import BMojoConfig as BMojoConfig
    from hasten.models.language.bmojo_lm import BMojoLM as BMojoLM
    from hasten.models.language.bottleneck_encoder import BottleneckConfig as BottleneckConfig
    from hasten.models.language.bottleneck_encoder import BottleneckEncoder as BottleneckEncoder
    from hasten.models.language.bottleneck_encoder import BottleneckLayer as BottleneckLayer
    from hasten.models.language.bottleneck_encoder import Observed as Observed
    from hasten.models.language.bottleneck_encoder import TokenEmbedding as TokenEmbedding
    from hasten.models.language.mamba_lm import MambaConfig as MambaConfig
    from hasten.models.language.mamba_lm import MambaLM as MambaLM
    from hasten.models.language.matmul_free import MatMulFreeConfig as MatMulFreeConfig
    from hasten.models.language.matmul_free import MatMulFreeLM as MatMulFreeLM
    from hasten.models.language.recurrent import RecurrentLM as RecurrentLM
    from hasten.models.language.smallthinker import HeadPredictor as HeadPredictor
    from hasten.models.language.smallthinker import Layer as Layer
    from hasten.models.language.smallthinker import SmallThinkerConfig as SmallThinkerConfig
    from hasten.models.language.smallthinker import SmallThinkerLM as SmallThinkerLM
    from hasten.models.loading.expert_tensors import MxExperts as MxExperts
    from hasten.models.loading.ggml_types import FileType as FileType
    from hasten.models.loading.gguf import GGUFFile as GGUFFile
    from hasten.models.loading.gguf import Packed as Packed
    from hasten.models.loading.gguf import TensorInfo as TensorInfo
    from hasten.models.loading.gguf_architectures import FileSetting as FileSetting
    from hasten.models.loading.gguf_architectures import StoredArchitecture as StoredArchitecture
    from hasten.models.loading.gguf_architectures import TensorForm as TensorForm
    from hasten.models.loading.gguf_architectures import WindowedLayers as WindowedLayers
    from hasten.models.loading.gguf_metadata import Metadata as Metadata
    from hasten.models.loading.gguf_names import TensorSource as TensorSource
    from hasten.models.loading.int4_folder import Int4 as Int4
    from hasten.models.loading.loaded import Loaded as Loaded
    from hasten.models.loading.network import load_network as load_network
    from hasten.models.loading.network import load_packed as load_packed
    from hasten.models.loading.parameter_kinds import Kind as Kind
    from hasten.models.loading.parameter_kinds import Modules as Modules
    from hasten.models.loading.quantization import Quantization as Quantization
    from hasten.models.loading.quantization import Rule as Rule
    from hasten.models.loading.stored_model import StoredModel as StoredModel
    from hasten.models.loading.weight_format import KeptTensor as KeptTensor
    from hasten.models.loading.weight_format import WeightFormat as WeightFormat
    from hasten.models.loading.weight_types import WeightTypes as WeightTypes
    from hasten.models.mixture_form import ExpertStack as ExpertStack
    from hasten.models.mixture_form import MixtureForm as MixtureForm
    from hasten.models.mixture_form import RouterKind as RouterKind
    from hasten.models.parallel_blocks import ResidualRun as ResidualRun
    from hasten.models.parallel_blocks import parallelize as parallelize
    from hasten.models.parallel_blocks import residual_runs as residual_runs
    from hasten.models.vision.ascan import AsCAN as AsCAN
    from hasten.models.vision.ascan import AsCANConfig as AsCANConfig
    from hasten.models.vision.ascan import StageLayout as StageLayout
    from hasten.models.vision.backbone import Backbone as Backbone
    from hasten.models.vision.backbone import FeatureInfo as FeatureInfo
    from hasten.models.vision.backbone import FeatureMaps as FeatureMaps
    from hasten.models.vision.backbone import Level as Level
    from hasten.models.vision.cell_network import CellConfig as CellConfig
    from hasten.models.vision.cell_network import CellNetwork as CellNetwork
    from hasten.models.vision.centernet import CenterNet as CenterNet
    from hasten.models.vision.centernet import CentreMaps as CentreMaps
    from hasten.models.vision.centernet import SizingNetwork as SizingNetwork
    from hasten.models.vision.darts import CellPlace as CellPlace
    from hasten.models.vision.darts import DartsCell as DartsCell
    from hasten.models.vision.darts import DartsConfig as DartsConfig
    from hasten.models.vision.darts import DartsNetwork as DartsNetwork
    from hasten.models.vision.darts import Genotype as Genotype
    from hasten.models.vision.dense_heads import Detections as Detections
    from hasten.models.vision.dense_heads import FeaturePyramid as FeaturePyramid
    from hasten.models.vision.dense_heads import PyramidDetector as PyramidDetector
    from hasten.models.vision.dense_heads import SemanticFPN as SemanticFPN
    from hasten.models.vision.densenet import DenseLayer as DenseLayer
    from hasten.models.vision.densenet import DenseLayers as DenseLayers
    from hasten.models.vision.densenet import DenseNet as DenseNet
    from hasten.models.vision.design_rules import DesignFinding as DesignFinding
    from hasten.models.vision.hiera import BlockSizes as BlockSizes
    from hasten.models.vision.hiera import Hiera as Hiera
    from hasten.models.vision.hiera import HieraConfig as HieraConfig
    from hasten.models.vision.kat import KAT as KAT
    from hasten.models.vision.kat import KATConfig as KATConfig
    from hasten.models.vision.lowformer import LowFormer as LowFormer
    from hasten.models.vision.lowformer import LowFormerBlock as LowFormerBlock
    from hasten.models.vision.lowformer import LowFormerConfig as LowFormerConfig
    from hasten.models.vision.mobile_chain import ChainBlock as ChainBlock
    from hasten.models.vision.mobile_chain import ChainConfig as ChainConfig
    from hasten.models.vision.mobile_chain import MobileChain as MobileChain
    from hasten.models.vision.once_for_all import Architecture as Architecture
    from hasten.models.vision.once_for_all import OFAConfig as OFAConfig
    from hasten.models.vision.once_for_all import OnceForAll as OnceForAll
    from hasten.models.vision.once_for_all import SubNetwork as SubNetwork
    from hasten.models.vision.plain import PlainLayers as PlainLayers
    from hasten.models.vision.plain import PlainNet as PlainNet
    from hasten.models.vision.proxyless import BlockPlace as BlockPlace
    from hasten.models.vision.proxyless import ProxylessConfig as ProxylessConfig
    from hasten.models.vision.proxyless import ProxylessNet as ProxylessNet
    from hasten.models.vision.proxyless import ProxylessSuperNet as ProxylessSuperNet
    from hasten.models.vision.pyramid_tree import PyramidTreeConfig as PyramidTreeConfig
    from hasten.models.vision.pyramid_tree import PyramidTreeNet as PyramidTreeNet
    from hasten.models.vision.pyramid_tree import PyramidTreeSuperNet as PyramidTreeSuperNet
    from hasten.models.vision.pyramid_tree import TreePlace as TreePlace
    from hasten.models.vision.residual_convnet import ResidualConvNet as ResidualConvNet
    from hasten.models.vision.residual_network import BasicBlock as BasicBlock
    from hasten.models.vision.residual_network import ResNet as ResNet
    from hasten.models.vision.resnet9 import ResNet9 as ResNet9
    from hasten.models.vision.shufflenet import ShuffleBlock as ShuffleBlock
    from hasten.models.vision.shufflenet import ShuffleNetConfig as ShuffleNetConfig
    from hasten.models.vision.shufflenet import ShuffleNetV2 as ShuffleNetV2
    from hasten.models.vision.simplenet import SimpleNet as SimpleNet
    from hasten.models.vision.simplenet import SimpleNetConfig as SimpleNetConfig
    from hasten.models.vision.terminator import Terminator as Terminator
    from hasten.models.vision.terminator import TerminatorConfig as TerminatorConfig

_exports = Exports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
