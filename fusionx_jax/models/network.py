"""The protocol of a network: its configuration, its traits, and the calls that the rest of the library makes.

A network is a Flax Linen module. Training, evaluation and reports depend on `Network` alone: properties of a network
are declared in `Network.traits`, never inferred from its name. `build.NETWORKS` lists the networks by
`config.model.family`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusionx_jax.errors import InputError
from fusionx_jax.masking import Mask
from fusionx_jax.models import layers
from fusionx_jax.types import Untyped

Images = Mapping[str, Float[Array, "batch _height _width _channels"]]
Masks = Mapping[str, Mask]
HasData = Mapping[str, Bool[Array, "batch _patches"]]


@dataclasses.dataclass(frozen=True)
class Traits:
    """Properties of a network that the rest of the library depends on.

    Attributes:
      pretrainable: the network has a pretraining objective; without one it is trained on labels only.
      reconstructs: `__call__` predicts the pixels of hidden patches.
      zero_filled: the input is one stack of channels, in which a missing modality can only be filled with zeros.
      equal_masks: all modalities need the same mask.
      min_modalities: number of modalities below which the network is undefined.
    """

    pretrainable: bool = True
    reconstructs: bool = True
    zero_filled: bool = False
    equal_masks: bool = False
    min_modalities: int = 1


class LayerGroups(NamedTuple):
    """Depth of every encoder parameter, for layer-wise learning-rate decay (BEiT, arXiv 2106.08254, appendix).

    Attributes:
      distance: number of blocks between the parameter and the encoder's last block (0 for that block). Same structure
        as the encoder's parameters; the leaves are integer arrays that broadcast against them, with one row per block
        for scanned blocks.
      deepest: largest distance.
    """

    distance: PyTree
    deepest: int


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and depth of encoder and decoder. `depth` counts the blocks after the fusion block."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0


# Encoders: the ViT family (arXiv 2010.11929, table 1; tiny and small: DeiT, arXiv 2012.12877, table 1) with the fusion
# block as the first block. Decoders: between MultiMAE's (arXiv 2204.01678, section 3.3: 256 wide, 2 blocks) and CROMA's
# (arXiv 2311.00566, section 3: 512 wide, 1 block). "mini" is this project's size for two CPU cores.
SIZES = {
    "mini": Size(128, 4, 4, 64, 1, 2),
    "tiny": Size(192, 11, 3, 128, 1, 4),
    "small": Size(384, 11, 6, 256, 2, 8),
    "base": Size(768, 11, 12, 512, 2, 16),
    "large": Size(1024, 23, 16, 512, 2, 16),
}

CROSS_ATTENTION = ("both", "encoder", "decoder", "none")
DECODER_CONTEXT = ("others", "all")
TARGETS = ("normalized", "raw", "both")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Architecture of a network. A network with options of its own subclasses it (see `Network.config_class`).

    Attributes:
      channels: (modality, number of bands), in the order in which tokens are concatenated.
      patch_size: side of a patch, pixels.
      size: width and depth.
      cross_attention: where modalities attend to each other, one of CROSS_ATTENTION.
      target: what the decoder predicts, one of TARGETS.
      dtype: of activations, one of DTYPES; parameters are float32.
      decoder_context: modalities whose encoded tokens a decoder attends to, one of DECODER_CONTEXT.
      drop_path: rate of stochastic depth.
      contrastive: each modality is also encoded alone and embedded, for InfoNCE.
      contrast_views: two views of a tile are embedded and contrasted; see `build.init_params`.
      own_depth: blocks of each modality before the fusion block, out of `size.depth`.
      remat: which activations of a block are recomputed in the backward pass, a key of `layers.REMAT`.
      unroll: blocks per iteration of the scans over blocks; 0: by backend (`layers.scan_unroll`).
    """

    channels: tuple[tuple[str, int], ...]
    patch_size: int
    size: Size
    cross_attention: str = "both"
    target: str = "both"
    dtype: str = "float32"
    decoder_context: str = "others"
    drop_path: float = 0.0
    contrastive: bool = False
    contrast_views: bool = False
    own_depth: int = 0
    remat: str = "none"
    unroll: int = 0

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("model.cross_attention", self.cross_attention, CROSS_ATTENTION),
            ("model.decoder_context", self.decoder_context, DECODER_CONTEXT),
            ("model.remat", self.remat, tuple(layers.REMAT)),
            ("model.dtype", self.dtype, DTYPES),
            ("target", self.target, TARGETS),
        ):
            if value not in choices:
                raise InputError(f"{key} is {value!r}; it must be one of {', '.join(choices)}.")
        for key in ("width", "decoder_width"):
            if getattr(self.size, key) % 4:
                raise InputError(f"model.{key} is {getattr(self.size, key)}; it must be a multiple of 4.")

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return tuple(name for name, _ in self.channels)

    @property
    def outputs(self) -> dict[str, int]:
        """Numbers that a decoder predicts per patch, by modality."""
        targets = 2 if self.target == "both" else 1
        return {name: self.patch_size**2 * channels * targets for name, channels in self.channels}


@runtime_checkable
class Network(Protocol):
    """A Flax Linen module with the calls below. Every method takes and returns dicts by modality."""

    config: NetworkConfig
    traits: ClassVar[Traits]
    config_class: ClassVar[type[NetworkConfig]]

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """The pretraining pass: predicts the hidden patches of `masks` from the visible patches of `images`."""
        ...

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Features of whole tiles. Without masks every patch is visible; `has_data` marks patches with valid pixels."""
        ...

    def layer_groups(self, params: PyTree) -> LayerGroups:
        """Depth of every parameter. `params` is the "encoder" subtree of the parameters, arrays or their shapes."""
        ...

    # Of flax.linen.Module, whose signatures are untyped.
    def init(self, *args: Untyped, **kwargs: Untyped) -> Untyped: ...

    def apply(self, *args: Untyped, **kwargs: Untyped) -> Untyped: ...

    def clone(self, **updates: Untyped) -> "Network": ...


def unrolled(model: Network, blocks: int) -> Network:
    """The same network with `blocks` blocks per iteration of its scans, at most all.

    XLA's cost analysis counts the body of a scan once, whatever its length, so FLOPs are counted with all blocks in one
    iteration. One block per iteration compiles fastest.
    """
    return model.clone(config=dataclasses.replace(model.config, unroll=blocks))


def encoder_blocks(config: NetworkConfig, depth: int, name: str | None = None) -> layers.Blocks:
    """`depth` blocks of the encoder's width."""
    c, size = config, config.size
    return layers.Blocks(
        depth, size.heads, size.mlp_ratio, jnp.dtype(c.dtype), c.drop_path, c.remat, c.unroll, name=name
    )


def decoder_blocks(config: NetworkConfig, name: str | None = None) -> layers.Blocks:
    """All blocks of one decoder."""
    c, size = config, config.size
    return layers.Blocks(
        size.decoder_depth, size.decoder_heads, size.mlp_ratio, jnp.dtype(c.dtype), 0.0, c.remat, c.unroll, name=name
    )


def at_distance(params: PyTree, distance: int) -> PyTree:
    """One distance for all parameters of a subtree."""
    return jax.tree.map(lambda _: np.array(distance), params)


def scanned_distances(params: PyTree, last: int) -> PyTree:
    """Distances in a stack of scanned blocks (`layers.Blocks`), whose last block has the distance `last`."""

    def rows(x: Array | np.ndarray | jax.ShapeDtypeStruct) -> np.ndarray:
        return last + np.arange(x.shape[0])[::-1].reshape(-1, *[1] * (len(x.shape) - 1))

    return jax.tree.map(rows, params)


def make_groups(distance: PyTree) -> LayerGroups:
    """Layer groups of a tree of distances."""
    return LayerGroups(distance, max((int(x.max()) for x in jax.tree.leaves(distance)), default=0))
