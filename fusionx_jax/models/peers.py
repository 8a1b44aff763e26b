"""Networks of the methods that FusionX-Net is compared with, built from the same layers.

A single-modality MAE and a MultiMAE-style network are `fusionx.FusionX` under another config (configs/methods/); this
module has the networks whose structure differs. All have the same width, heads and number of blocks per token
(`size.depth + 1`); parameters and FLOPs therefore differ, and tables list them.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusionx_jax.masking import Mask
from fusionx_jax.models import fusionx, layers, network
from fusionx_jax.models.network import HasData, Images, Masks, Traits
from fusionx_jax.models.positions import sincos_positions


def stack(images: Images, config: network.NetworkConfig) -> Float[Array, "batch height width channels"]:
    """The bands of all modalities as one image. A missing modality is filled with zeros, the mean of its bands."""
    shape = next(iter(images.values())).shape[:3]
    return jnp.concatenate([images.get(n, jnp.zeros((*shape, c))) for n, c in config.channels], axis=-1)


def _any(has_data: HasData) -> Bool[Array, "batch _patches"]:
    return jnp.stack(list(has_data.values())).any(0)


def _one_mask(masks: Masks) -> Mask:
    """The mask of the stack, from masks that hide the same patches; a position has data where any modality has."""
    mask = next(iter(masks.values()))
    known = [m.visible_ok for m in masks.values() if m.visible_ok is not None]
    return mask._replace(visible_ok=jnp.stack(known).any(0)) if known else mask


class StackedMAE(nn.Module):
    """MAE on stacked channels, like SatViT ("SatViT: Pretraining Transformers for Earth Observation", IEEE GRSL 2022,
    section II): one patch embedding over the bands of all modalities, one mask, one decoder for all bands.

    Differences: targets are normalized per modality, not over all bands together; positions are sine-cosine encodings;
    the decoder is as light as that of every other network here.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(equal_masks=True, zero_filled=True)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = fusionx.Encoder(self._encoder_config())
        self.decoder = fusionx.Decoder(self._encoder_config())

    @nn.nowrap
    def _encoder_config(self) -> network.NetworkConfig:
        """One modality that holds the bands of all."""
        channels = (("stacked", sum(c for _, c in self.config.channels)),)
        return dataclasses.replace(self.config, channels=channels, cross_attention="none")

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts the hidden patches of every modality; the masks must be the same for all of them."""
        config = self.config
        mask = _one_mask(masks)
        tokens = self._encode(images, {"stacked": mask}, None)
        grid = layers.grid(next(iter(images.values())), config.patch_size)
        positions = {"stacked": sincos_positions(*grid, config.size.decoder_width)}
        sizes = list(config.outputs.values())
        predicted = self.decoder(tokens.groups, {"stacked": mask}, positions, {"stacked": sum(sizes)})["stacked"]
        parts = jnp.split(predicted, np.cumsum(sizes)[:-1].tolist(), axis=-1)
        return layers.Output(dict(zip(config.outputs, parts)), {}, tokens)

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of the stacked image, one group."""
        return self._encode(images, None if masks is None else {"stacked": _one_mask(masks)}, has_data)

    def _encode(self, images: Images, masks: Masks | None, has_data: HasData | None) -> layers.Tokens:
        config = self.config
        stacked = {"stacked": stack(images, config)}
        everywhere = None if has_data is None else {"stacked": _any(has_data)}
        return self.encoder(layers.see(stacked, masks, everywhere, config.patch_size, config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """See `fusionx.encoder_groups`."""
        return fusionx.encoder_groups(self._encoder_config(), params)


class _ModalityEncoder(nn.Module):
    """A transformer for one modality."""

    config: network.NetworkConfig
    depth: int

    @nn.compact
    def __call__(self, seen: layers.Seen) -> Float[Array, "batch tokens dim"]:
        dtype = jnp.dtype(self.config.dtype)
        tokens = layers.Embed(self.config.size.width, dtype, name="embed")(seen)
        blocks = network.encoder_blocks(self.config, self.depth, name="blocks")
        return nn.LayerNorm(dtype=dtype, name="norm")(blocks(tokens, seen.ok))


def _project(config: network.NetworkConfig, tokens: layers.Tokens) -> dict[str, Float[Array, "batch _dim"]]:
    """Embedding of every modality for InfoNCE, inside the calling compact module."""
    dtype = jnp.dtype(config.dtype)
    return {
        n: layers.Projector(config.size.width, dtype, name=f"project_{n}")(
            layers.average(tokens.groups[n], tokens.ok[n])
        )
        for n in config.names
    }


def _encoder_distances(config: network.NetworkConfig, params: PyTree, below: int) -> dict[str, PyTree]:
    """Distances in the modalities' encoders, whose last blocks have the distance `below`. Embeddings share a group."""
    deepest = below + config.size.depth + 1
    return {
        f"own_{n}": {
            "embed": network.at_distance(params[f"own_{n}"]["embed"], deepest),
            "blocks": network.scanned_distances(params[f"own_{n}"]["blocks"], below),
            "norm": network.at_distance(params[f"own_{n}"]["norm"], below),
        }
        for n in config.names
    }


class CromaEncoder(nn.Module):
    """An encoder per modality, and a cross encoder in which the first modality attends to the others."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        c = self.config
        first, *others = c.names
        total = c.size.depth + 1
        crossing = total // 2
        available = [n for n in c.names if n in seen]
        ok = {n: seen[n].ok for n in available}
        tokens = {}
        for name in available:
            depth = total - crossing if name == first else total
            tokens[name] = _ModalityEncoder(c, depth, name=f"own_{name}")(seen[name])
        rest = [n for n in others if n in available]
        if first in available and rest:
            context = jnp.concatenate([tokens[n] for n in rest], axis=1)
            blocks = network.encoder_blocks(c, crossing, name="cross")
            fused = blocks(tokens[first], ok[first], context, fusionx.join_ok(ok, tokens, rest))
            tokens["fused"] = nn.LayerNorm(dtype=jnp.dtype(c.dtype), name="cross_norm")(fused)
            ok["fused"] = ok[first]
        summary = "fused" if "fused" in tokens else available[0]
        return layers.Tokens(layers.average(tokens[summary], ok[summary]), tokens, ok)


class Croma(nn.Module):
    """CROMA ("CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders", arXiv
    2311.00566, section 3): an encoder per modality, InfoNCE between their averaged visible tokens, a cross encoder in
    which radar attends to optical, and one light decoder that reconstructs both modalities from the joint tokens.

    The radar encoder has half of the depth, the cross encoder the other half and the optical encoder all of it, as in
    the paper (6, 6 and 12). Differences: sine-cosine positions instead of 2-D ALiBi; the temperature is fixed at the
    paper's initial value; the two losses have weights. The first modality of the config is in the position of radar.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(min_modalities=2)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = CromaEncoder(self.config)
        self.head = _CromaHead(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts the hidden patches of each modality from the joint tokens, and embeds each modality for InfoNCE."""
        seen = layers.see(images, masks, None, self.config.patch_size, self.config.size.width)
        grid = layers.grid(next(iter(images.values())), self.config.patch_size)
        return self.head(self.encoder(seen), masks, grid)

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of every available modality, and joint tokens ("fused") if the first and another are available."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The cross encoder, then the modalities' encoders; embeddings of all modalities share the deepest group."""
        crossing = (self.config.size.depth + 1) // 2
        joint = {
            "cross": network.scanned_distances(params["cross"], 0),
            "cross_norm": network.at_distance(params["cross_norm"], 0),
        }
        return network.make_groups(joint | _encoder_distances(self.config, params, crossing))


class _CromaHead(nn.Module):
    config: network.NetworkConfig

    @nn.compact
    def __call__(self, tokens: layers.Tokens, masks: Masks, grid: tuple[int, int]) -> layers.Output:
        c, size, dtype = self.config, self.config.size, jnp.dtype(self.config.dtype)
        mask = masks[c.names[0]]
        positions = jnp.asarray(sincos_positions(*grid, size.decoder_width))
        known = layers.linear(tokens.groups["fused"], size.decoder_width, "project", dtype)
        known = (known + jnp.take(positions, mask.visible, axis=0)).astype(dtype)
        blank = self.param("mask", layers.token_init(), (size.decoder_width,))
        sequence = layers.fill_up(positions + blank, known, mask)
        sequence = network.decoder_blocks(c, name="blocks")(sequence)
        sequence = nn.LayerNorm(dtype=dtype, name="norm")(sequence)
        predicted = {
            n: layers.linear(layers.take_hidden(sequence, masks[n]), width, f"head_{n}", dtype).astype(jnp.float32)
            for n, width in c.outputs.items()
        }
        return layers.Output(predicted, _project(c, tokens), tokens)


class SeparateEncoder(nn.Module):
    """An encoder of full depth per modality, without interaction between them."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        c = self.config
        available = [n for n in c.names if n in seen]
        tokens = {n: _ModalityEncoder(c, c.size.depth + 1, name=f"own_{n}")(seen[n]) for n in available}
        ok = {n: seen[n].ok for n in available}
        averages = [layers.average(tokens[n], ok[n]) for n in available]
        return layers.Tokens(jnp.stack(averages).mean(0), tokens, ok)


class SeparateMAE(nn.Module):
    """A masked autoencoder (arXiv 2111.06377) for each modality, in one network without interaction: what two networks
    give whose features are set side by side.

    Encoders have the depth of every other network here, decoders its width and depth.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits()
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = SeparateEncoder(self.config)
        self.decoder = fusionx.Decoder(dataclasses.replace(self.config, cross_attention="none"))

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts the hidden patches of each modality from its own visible ones."""
        c = self.config
        seen = layers.see(images, {n: masks[n] for n in images}, None, c.patch_size, c.size.width)
        tokens = self.encoder(seen)
        grids = {n: layers.grid(next(iter(images.values())), c.patch_size) for n in masks}
        positions = {n: sincos_positions(*g, c.size.decoder_width) for n, g in grids.items()}
        return layers.Output(self.decoder(tokens.groups, masks, positions, c.outputs), {}, tokens)

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of every available modality, each from its own encoder."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The modalities' encoders, which share no parameters."""
        return network.make_groups(_encoder_distances(self.config, params, 0))


class Contrastive(nn.Module):
    """Cross-modal InfoNCE without reconstruction, as in CLIP (arXiv 2103.00020) with modalities in place of image and
    text: the encoder of each modality sees a random view of the whole tile (`preprocess.random_views`: resized crop,
    flips and rotations, gain and noise), and the views of one tile are the positive pair.

    Differences from radar-optical contrastive methods such as DINO-MM (arXiv 2204.05381): no teacher, no multi-crop,
    no modality drop; from CLIP: the temperature is fixed, not learned. Views are those of SimCLR (arXiv 2002.05709,
    appendix A) without the color shifts that apply to photographs only.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(reconstructs=False, min_modalities=2)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = SeparateEncoder(self.config)
        self.head = _ContrastiveHead(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Embeds the view of each modality; without masking and prediction."""
        del masks
        return layers.Output({}, self.head(self.encode(images)))

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of every available modality, each from its own encoder."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The modalities' encoders, which share no parameters."""
        return network.make_groups(_encoder_distances(self.config, params, 0))


class _ContrastiveHead(nn.Module):
    config: network.NetworkConfig

    @nn.compact
    def __call__(self, tokens: layers.Tokens) -> dict[str, Float[Array, "batch _dim"]]:
        return _project(self.config, tokens)


class _ResidualBlock(NamedTuple):
    name: str
    width: int
    stride: int


_BLOCK_PARTS = ("norm1", "conv1", "norm2", "conv2", "shortcut")


def _residual_blocks(size: network.Size) -> list[_ResidualBlock]:
    """The blocks of the ResNet, from the stem up."""
    return [
        _ResidualBlock(f"stage{stage}_block{number}", width, 2 if number == 0 and stage else 1)
        for stage, width in enumerate((size.width // 4, size.width // 2, size.width))
        for number in range(max(1, size.depth // 2))
    ]


class ResNetEncoder(nn.Module):
    """A residual network (arXiv 1512.03385, layout for small images of section 4.2) over stacked channels.

    Three stages of `depth / 2` basic blocks each, with a quarter, a half and all of `size.width`; strides 2, 2, 2. At
    size "mini" it has about half as many parameters as the encoders of the other methods. Normalization and activation
    precede each convolution (arXiv 1603.05027); where a block changes the width, the shortcut is a convolution of its
    input, not normalized. Batch normalization would need running statistics; instead each position is normalized over
    its channels, and convolutions have biases (as in ConvNeXt, arXiv 2201.03545, section 2.6). Group normalization over
    a whole tile would remove its mean brightness, which is informative.
    """

    config: network.NetworkConfig

    @nn.compact
    def __call__(self, images: Images) -> layers.Tokens:
        size, dtype = self.config.size, jnp.dtype(self.config.dtype)
        x = stack(images, self.config).astype(dtype)
        x = self._conv(x, size.width // 4, 3, 2, "stem")
        for name, width, stride in _residual_blocks(size):
            y = self._conv(nn.relu(self._norm(x, f"{name}_norm1")), width, 3, stride, f"{name}_conv1")
            y = self._conv(nn.relu(self._norm(y, f"{name}_norm2")), width, 3, 1, f"{name}_conv2")
            shortcut = x if x.shape == y.shape else self._conv(x, width, 1, stride, f"{name}_shortcut")
            x = shortcut + layers.DropPath(self.config.drop_path, name=f"{name}_drop_path")(y)
        x = nn.relu(self._norm(x, "norm")).reshape(x.shape[0], -1, x.shape[-1])
        return layers.Tokens(x.mean(1), {"stacked": x}, {"stacked": None})

    def _conv(self, x: Array, features: int, kernel: int, stride: int, name: str) -> Array:
        return nn.Conv(
            features, (kernel, kernel), (stride, stride), dtype=x.dtype, name=name,
            kernel_init=nn.initializers.he_normal(),
        )(x)  # fmt: skip

    def _norm(self, x: Array, name: str) -> Array:
        return nn.LayerNorm(dtype=x.dtype, name=name)(x)


class ResNet(nn.Module):
    """A convolutional network for training on labels. It has no pretraining objective."""

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(pretrainable=False, reconstructs=False, zero_filled=True)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = ResNetEncoder(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Runs the network; there is nothing to predict."""
        del masks
        self.encoder(images)
        return layers.Output({}, {})

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Positions of the last feature map as tokens."""
        del masks, has_data
        return self.encoder(images)

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The residual blocks of all stages, then the stem. The final norm is in the group of the last block."""
        names = [block.name for block in _residual_blocks(self.config.size)]
        level = {"norm": 0, "stem": len(names)}
        for number, name in enumerate(reversed(names)):
            level |= dict.fromkeys((f"{name}_{part}" for part in _BLOCK_PARTS), number)
        return network.make_groups({key: network.at_distance(x, level[key]) for key, x in params.items()})


class PatchStatistics(nn.Module):
    """Mean and standard deviation of each patch by band, in standardized units: a baseline without parameters."""

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(pretrainable=False, reconstructs=False)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """There is nothing to predict."""
        del images, masks
        return layers.Output({}, {})

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Two numbers per band for every patch."""
        del masks
        groups = {}
        for name, image in images.items():
            p, channels = self.config.patch_size, image.shape[-1]
            patches = layers.patchify(image, p)
            pixels = patches.reshape(*patches.shape[:2], p * p, channels)
            groups[name] = jnp.concatenate([pixels.mean(2), pixels.std(2)], axis=-1)
        ok = {n: None if has_data is None else has_data[n] for n in groups}
        return layers.Tokens(jnp.concatenate([g.mean(1) for g in groups.values()], axis=-1), groups, ok)

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """There are no parameters."""
        return network.make_groups(params)
