"""The methods people would use instead, from the same parts, with the same call signature as `fusionx.FusionX`.

A single-sensor MAE and a MultiMAE-style network are `fusionx.FusionX` itself under another config (configs/methods/).
Here stand those whose structure differs. The budget is the same for all: width, heads and the number of blocks that a
token passes (`size.depth + 1`); parameters and FLOPs then differ, and tables give them.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fusionx_jax.models import fusionx, layers, network
from fusionx_jax.models.network import HasData, Images, Masks, Traits
from fusionx_jax.models.positions import sincos_positions


def stack(images: Images, config: network.NetworkConfig) -> Float[Array, "batch height width channels"]:
    """All bands of all sensors as one image. An absent sensor is filled with zeros, its bands' mean: a network that
    takes stacked channels has no other way."""
    shape = next(iter(images.values())).shape[:3]
    return jnp.concatenate([images.get(n, jnp.zeros((*shape, c))) for n, c in config.channels], axis=-1)


def _any(has_data: HasData | None) -> Array | None:
    return None if has_data is None else jnp.stack(list(has_data.values())).any(0)


class StackedMAE(nn.Module):
    """MAE on stacked channels, like SatViT ("SatViT: Pretraining Transformers for Earth Observation", IEEE GRSL 2022,
    section II): one patch embedding over the bands of all sensors, one mask, one decoder for all bands.

    Differences: targets are normalized per sensor, never over all bands together; positions are sine-cosine codes; the
    decoder is as light as every other method's here.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(equal_masks=True, zero_filled=True)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self):
        self.encoder = fusionx.Encoder(self._encoder_config())
        self.decoder = fusionx.Decoder(self._encoder_config())

    @nn.nowrap
    def _encoder_config(self) -> network.NetworkConfig:
        """One modality that holds the bands of all."""
        channels = (("stacked", sum(c for _, c in self.config.channels)),)
        return dataclasses.replace(self.config, channels=channels, cross_attention="none")

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts the hidden patches of every sensor; the masks must be the same for all sensors."""
        config = self.config
        some = next(iter(images.values()))
        mask = next(iter(masks.values()))
        if mask.visible_ok is not None:  # a place counts where any sensor has data
            mask = mask._replace(visible_ok=jnp.stack([m.visible_ok for m in masks.values()]).any(0))
        tokens = self._encode(images, {"stacked": mask}, None)
        positions = sincos_positions(*layers.grid(some, config.patch_size), config.size.decoder_width)
        total = sum(config.outputs.values())
        predicted = self.decoder(tokens.groups, {"stacked": mask}, {"stacked": positions}, {"stacked": total})
        edges = [sum(list(config.outputs.values())[: i + 1]) for i in range(len(config.outputs) - 1)]
        return layers.Output(dict(zip(config.outputs, jnp.split(predicted["stacked"], edges, axis=-1))), {})

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of the stacked image, one group."""
        del masks
        return self._encode(images, None, has_data)

    def _encode(self, images, masks, has_data):
        config = self.config
        stacked = {"stacked": stack(images, config)}
        everywhere = None if has_data is None else {"stacked": _any(has_data)}
        return self.encoder(layers.see(stacked, masks, everywhere, config.patch_size, config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """See `fusionx.encoder_groups`."""
        return fusionx.encoder_groups(self._encoder_config(), params)


class _SensorEncoder(nn.Module):
    """A transformer for one sensor alone."""

    size: network.Size
    depth: int
    dtype: str
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, seen: layers.Seen) -> Float[Array, "batch tokens dim"]:
        dtype = jnp.dtype(self.dtype)
        tokens = layers.Embed(self.size.width, dtype, name="embed")(seen)
        size = self.size
        blocks = layers.Blocks(self.depth, size.heads, size.mlp_ratio, dtype, self.drop_path, self.remat, name="blocks")
        return nn.LayerNorm(dtype=dtype, name="norm")(blocks(tokens, seen.ok))


def _project(module: nn.Module, tokens: layers.Tokens, names) -> dict[str, Array]:
    size, dtype = module.config.size, jnp.dtype(module.config.dtype)
    return {
        n: layers.Projector(size.width, dtype, name=f"project_{n}")(layers.average(tokens.groups[n], tokens.ok[n]))
        for n in names
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
    """One encoder a sensor, and a cross encoder in which the first sensor's tokens attend to the others'."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        first, *others = c.names
        total = c.size.depth + 1
        crossing = total // 2
        present = [n for n in c.names if n in seen]
        tokens = {
            n: _SensorEncoder(
                c.size, total - crossing if n == first else total, c.dtype, c.drop_path, c.remat, name=f"own_{n}"
            )(seen[n])
            for n in present
        }
        ok = {n: seen[n].ok for n in present}
        rest = [n for n in others if n in present]
        if first in present and rest:
            context = jnp.concatenate([tokens[n] for n in rest], axis=1)
            blocks = layers.Blocks(crossing, c.size.heads, c.size.mlp_ratio, dtype, c.drop_path, c.remat, name="cross")
            fused = blocks(tokens[first], ok[first], context, fusionx.join_ok(ok, tokens, rest))
            tokens["fused"], ok["fused"] = nn.LayerNorm(dtype=dtype, name="cross_norm")(fused), ok[first]
        summary = tokens.get("fused", tokens[present[0]])
        return layers.Tokens(layers.average(summary, ok.get("fused", ok[present[0]])), tokens, ok)


class Croma(nn.Module):
    """CROMA ("CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked Autoencoders", arXiv
    2311.00566, section 3): an encoder for each sensor, InfoNCE between their averaged visible tokens, a cross encoder
    in which radar attends to optical, and one light decoder that rebuilds both sensors from the joint tokens.

    The radar encoder has half the depth and the cross encoder the other half, the optical encoder the whole, as in the
    paper (6, 6 and 12). Differences: sine-cosine positions instead of 2-D ALiBi; the temperature is fixed at the
    paper's initial value; one loss weight for each of the terms. The first modality of the config takes radar's part.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(min_modalities=2)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self):
        self.encoder = CromaEncoder(self.config)
        self.head = _CromaHead(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts each modality's hidden patches from the joint tokens, and embeds each sensor for InfoNCE."""
        seen = layers.see(images, masks, None, self.config.patch_size, self.config.size.width)
        grid = layers.grid(next(iter(images.values())), self.config.patch_size)
        return self.head(self.encoder(seen), masks, grid)

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of every sensor present, and the joint ones ("fused") where radar and another are."""
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
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        size, mask = c.size, masks[c.names[0]]
        positions = jnp.asarray(sincos_positions(*grid, size.decoder_width))
        known = layers.linear(tokens.groups["fused"], size.decoder_width, "project", dtype)
        known = (known + jnp.take(positions, mask.visible, axis=0)).astype(dtype)
        blank = self.param("mask", layers.token_init(), (size.decoder_width,))
        sequence = layers.fill_up(positions + blank, known, mask)
        blocks = layers.Blocks(size.decoder_depth, size.decoder_heads, size.mlp_ratio, dtype, name="blocks")
        sequence = nn.LayerNorm(dtype=dtype, name="norm")(blocks(sequence))
        predicted = {
            n: layers.linear(layers.take_hidden(sequence, masks[n]), width, f"head_{n}", dtype).astype(jnp.float32)
            for n, width in c.outputs.items()
        }
        return layers.Output(predicted, _project(self, tokens, c.names))


class ContrastiveEncoder(nn.Module):
    """One encoder of full depth for each sensor; they never meet."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        c = self.config
        present = [n for n in c.names if n in seen]
        tokens = {
            n: _SensorEncoder(c.size, c.size.depth + 1, c.dtype, c.drop_path, c.remat, name=f"own_{n}")(seen[n])
            for n in present
        }
        ok = {n: seen[n].ok for n in present}
        averages = [layers.average(tokens[n], ok[n]) for n in present]
        return layers.Tokens(jnp.stack(averages).mean(0), tokens, ok)


class Contrastive(nn.Module):
    """Cross-modal InfoNCE without reconstruction, as in CLIP (arXiv 2103.00020) with sensors for languages: each
    sensor's encoder sees its own random view of the whole tile (crop resized, flips and turns, gain and noise; see
    `preprocess.random_views`), and the views of one tile are to be nearest.

    Differences from radar-optical contrastive methods such as DINO-MM (arXiv 2204.05381): no teacher, no multi-crop,
    no sensor drop; from CLIP: the temperature is fixed, not learnt. Views are of SimCLR's kind (arXiv 2002.05709,
    appendix A) without color shifts that only photographs have.
    """

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(reconstructs=False, min_modalities=2)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self):
        self.encoder = ContrastiveEncoder(self.config)
        self.head = _ContrastiveHead(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Embeds each sensor's view; nothing is masked and nothing predicted."""
        del masks
        return layers.Output({}, self.head(self.encode(images)))

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Tokens of every sensor present, each from its own encoder."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The modalities' encoders, which share no parameters."""
        return network.make_groups(_encoder_distances(self.config, params, 0))


class _ContrastiveHead(nn.Module):
    config: network.NetworkConfig

    @nn.compact
    def __call__(self, tokens: layers.Tokens) -> dict[str, Array]:
        return _project(self, tokens, self.config.names)


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
    """A residual network (arXiv 1512.03385, section 4.2's layout for small images) over stacked channels.

    Three stages of half of `depth` basic blocks, of a quarter, a half and the whole of `size.width`; strides 2, 2, 2.
    At size "mini" it has about half as many parameters as the other methods' encoders. Normalization and activation
    come before each convolution (arXiv 1603.05027); where a block changes the width, a convolution of its input, not
    normalized, is the shortcut. Batch normalization would keep a running state; instead each place is normalized over
    its channels, and convolutions have biases (as in ConvNeXt, arXiv 2201.03545, section 2.6). Group normalization
    over a whole tile would take away how bright the tile is, which tells much of what it shows.
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
            x = shortcut + y
        x = nn.relu(self._norm(x, "norm")).reshape(x.shape[0], -1, x.shape[-1])
        return layers.Tokens(x.mean(1), {"stacked": x}, {"stacked": None})

    def _conv(self, x, features, kernel, stride, name):
        return nn.Conv(
            features, (kernel, kernel), (stride, stride), dtype=x.dtype, name=name,
            kernel_init=nn.initializers.he_normal(),
        )(x)  # fmt: skip

    def _norm(self, x, name):
        return nn.LayerNorm(dtype=x.dtype, name=name)(x)


class ResNet(nn.Module):
    """The convolutional network that many would train on the labels alone. It has no pretraining of its own."""

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(pretrainable=False, reconstructs=False, zero_filled=True)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self):
        self.encoder = ResNetEncoder(self.config)

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Runs the network; there is nothing to predict."""
        del masks
        self.encoder(images)
        return layers.Output({}, {})

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """The last feature map's places as tokens."""
        del masks, has_data
        return self.encoder(images)

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """The residual blocks of all stages in order, then the stem; the final norm is trained with the last block."""
        names = [block.name for block in _residual_blocks(self.config.size)]
        level = {"norm": 0, "stem": len(names)}
        for number, name in enumerate(reversed(names)):
            level |= dict.fromkeys((f"{name}_{part}" for part in _BLOCK_PARTS), number)
        return network.make_groups({key: network.at_distance(x, level[key]) for key, x in params.items()})


class PatchStatistics(nn.Module):
    """No network at all: each patch's mean and deviation by band, in standardized units. A floor for pixel labels."""

    config: network.NetworkConfig
    traits: ClassVar[Traits] = Traits(pretrainable=False, reconstructs=False)
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """There is nothing to predict."""
        del images, masks
        return layers.Output({}, {})

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Two numbers a band for every patch; there are no parameters."""
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
