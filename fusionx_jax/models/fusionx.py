"""FusionX-Net: masked autoencoding of co-registered sensors with cross-attention fusion.

After Fus-MAE (arXiv 2401.02764), section 3. Encoder: each modality has its own patch embedding, applied to visible
patches only; in the first block every modality attends to all others (`[x; y] + [CA(x<-y); CA(y<-x)]`, then a shared
MLP: early fusion); a class token joins and standard blocks run over the joint sequence. Decoder: per modality the
sequence is filled up with mask tokens, attends to the other modalities' encoded tokens (feature-level fusion), passes
a light transformer and a linear head that predicts the patch's pixels.

With `contrastive` the encoder also sees every modality alone, as when the others are missing, and InfoNCE (CROMA, arXiv
2311.00566) draws the embeddings of one tile together: reconstruction alone asks little of a tile's summary.

Differences from the paper: that contrastive term; the decoder's cross-attention reads the others' *visible* tokens
rather than their filled-up sequence (mask tokens carry a position and nothing else), and any number of modalities runs
through the same code. A modality that is absent is left out of the sequence; with none other present the
cross-attention term is left out too.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fusionx_jax.contract import InputError
from fusionx_jax.masking import Mask
from fusionx_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and depth of encoder and decoder. `depth` counts joint blocks after the fusion block."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float = 4.0


# Depths are those of the ViT family with the fusion block as the first block; decoders follow PROTOCOLS' light ones
# (MultiMAE 256 x 2, CROMA 512 x 1).
SIZES = {
    "mini": Size(128, 4, 4, 64, 1, 2),
    "tiny": Size(192, 11, 3, 128, 1, 4),
    "small": Size(384, 11, 6, 256, 2, 8),
    "base": Size(768, 11, 12, 512, 2, 16),
    "large": Size(1024, 23, 16, 512, 2, 16),
}

CROSS_ATTENTION = ("both", "encoder", "decoder", "none")
DECODER_CONTEXT = ("others", "all")
TARGETS = ("normalised", "raw", "both")


@dataclasses.dataclass(frozen=True)
class FusionXConfig:
    """What a network is. `channels` is bands by modality, in the order tokens are concatenated.

    `decoder_context` says whose encoded tokens a modality's decoder attends to: the other modalities', or all.
    `own_depth` blocks of the encoder's depth are each modality's own, before the fusion block. `contrastive`: each
    modality's visible patches are also encoded alone and embedded, to be contrasted.
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
    own_depth: int = 0

    def __post_init__(self):
        if self.cross_attention not in CROSS_ATTENTION:
            raise InputError(
                f"model.cross_attention is {self.cross_attention!r}; it must be one of {', '.join(CROSS_ATTENTION)}."
            )
        if self.decoder_context not in DECODER_CONTEXT:
            raise InputError(
                f"model.decoder_context is {self.decoder_context!r}; it must be one of {', '.join(DECODER_CONTEXT)}."
            )
        if not 0 <= self.own_depth <= self.size.depth:
            raise InputError(f"model.own_depth is {self.own_depth}; it must lie between 0 and {self.size.depth}.")
        if self.target not in TARGETS:
            raise InputError(f"target is {self.target!r}; it must be one of {', '.join(TARGETS)}.")
        for what in ("width", "decoder_width"):
            if getattr(self.size, what) % 4:
                raise InputError(f"model.{what} is {getattr(self.size, what)}; it must be a multiple of 4.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.channels)

    @property
    def outputs(self) -> dict[str, int]:
        """Numbers a decoder predicts for one patch, by modality."""
        twice = 2 if self.target == "both" else 1
        return {name: self.patch_size**2 * channels * twice for name, channels in self.channels}


class Encoder(nn.Module):
    """Tokens of the visible patches of every present modality, fused from the first block on."""

    config: FusionXConfig

    @nn.compact
    def __call__(
        self,
        seen: Mapping[str, layers.Seen],
    ) -> layers.Tokens:
        """Class token and tokens by modality, after the final norm."""
        size, dtype = self.config.size, jnp.dtype(self.config.dtype)
        present = [name for name in self.config.names if name in seen]
        tokens = {name: layers.Embed(size.width, dtype, name=f"embed_{name}")(seen[name]) for name in present}
        ok = {name: seen[name].ok for name in present}
        lengths = [tokens[name].shape[1] for name in present]
        if self.config.own_depth:
            for name in present:
                own = layers.Blocks(
                    self.config.own_depth, size.heads, size.mlp_ratio, dtype, self.config.drop_path, name=f"own_{name}"
                )
                tokens[name] = own(tokens[name], ok[name])
        tokens = self._first_block(tokens, ok, present)
        first = self.param("class_token", layers.token_init(), (1, 1, size.width)).astype(dtype)
        joint = jnp.concatenate(
            [jnp.broadcast_to(first, (len(tokens[present[0]]), 1, size.width))] + [tokens[n] for n in present], axis=1
        )
        depth = size.depth - self.config.own_depth
        joint = layers.Blocks(depth, size.heads, size.mlp_ratio, dtype, self.config.drop_path, name="blocks")(
            joint, join_ok(ok, tokens, present, lead=1)
        )
        joint = nn.LayerNorm(dtype=dtype, name="norm")(joint)
        out, start = {}, 1
        for name, length in zip(present, lengths):
            out[name] = joint[:, start : start + length]
            start += length
        return layers.Tokens(joint[:, 0], out, ok)

    def _first_block(self, tokens, ok, present):
        """Early fusion, or an ordinary joint block where the config leaves the encoder's cross-attention out."""
        size, dtype = self.config.size, jnp.dtype(self.config.dtype)
        if self.config.cross_attention not in ("both", "encoder"):
            joint = jnp.concatenate([tokens[n] for n in present], axis=1)
            joint, _ = layers.Block(size.heads, size.mlp_ratio, dtype, name="first")(
                joint, join_ok(ok, tokens, present)
            )
            return dict(zip(present, jnp.split(joint, _offsets(tokens, present), axis=1)))
        normed = {n: nn.LayerNorm(dtype=dtype, name=f"fusion_norm_{n}")(tokens[n]) for n in present}
        fused = dict(tokens)
        if len(present) > 1:
            for name in present:
                others = [o for o in present if o != name]
                context = jnp.concatenate([normed[o] for o in others], axis=1)
                attention = layers.CrossAttention(size.heads, dtype, name=f"fusion_{name}")
                fused[name] = tokens[name] + attention(normed[name], context, join_ok(ok, tokens, others))
        joint = jnp.concatenate([fused[n] for n in present], axis=1)
        mlp = layers.Mlp(size.mlp_ratio, dtype, name="fusion_mlp")
        joint = joint + mlp(nn.LayerNorm(dtype=dtype, name="fusion_mlp_norm")(joint))
        return dict(zip(present, jnp.split(joint, _offsets(tokens, present), axis=1)))


def _offsets(tokens, present):
    offsets, total = [], 0
    for name in present[:-1]:
        total += tokens[name].shape[1]
        offsets.append(total)
    return offsets


def join_ok(ok, tokens, present, lead: int = 0) -> Array | None:
    """Validity of a concatenated sequence with `lead` always-valid tokens in front; None where all are valid."""
    if all(ok.get(n) is None for n in present):
        return None
    batch = tokens[present[0]].shape[0]
    parts = [jnp.ones((batch, lead), bool)] if lead else []
    parts += [jnp.ones(tokens[n].shape[:2], bool) if ok.get(n) is None else ok[n] for n in present]
    return jnp.concatenate(parts, axis=1)


class Decoder(nn.Module):
    """One light decoder per modality, each reading all others' encoded tokens. Predicts every patch's pixels."""

    config: FusionXConfig

    @nn.compact
    def __call__(
        self,
        tokens: Mapping[str, Float[Array, "batch _visible _dim"]],
        masks: Mapping[str, Mask],
        positions: Mapping[str, Float[np.ndarray, "_patches _width"]],
        outputs: Mapping[str, int],
    ) -> dict[str, Float[Array, "batch _patches _pixels"]]:
        """`tokens` are the encoder's; a modality in `masks` but not in `tokens` is decoded from the others alone."""
        size, dtype = self.config.size, jnp.dtype(self.config.dtype)
        width = size.decoder_width
        wanted = [name for name in self.config.names if name in masks]
        place, known = {}, {}
        for name in wanted:
            own = self.param(f"modality_{name}", layers.token_init(), (width,))
            place[name] = jnp.asarray(positions[name]) + own
            if name in tokens:
                projected = layers.linear(tokens[name], width, f"project_{name}", dtype)
                known[name] = projected + jnp.take(place[name], masks[name].visible, axis=0).astype(dtype)
        ok = {name: masks[name].visible_ok for name in known}
        crossing = self.config.cross_attention in ("both", "decoder")
        context = {
            name: nn.LayerNorm(dtype=dtype, name=f"context_norm_{name}")(known[name]) for name in known if crossing
        }
        out = {}
        for name in wanted:
            blank = self.param(f"mask_{name}", layers.token_init(), (width,))
            sequence = layers.fill_up((place[name] + blank).astype(dtype), known.get(name), masks[name])
            others = [other for other in known if other != name or self.config.decoder_context == "all"]
            if crossing and others:
                normed = nn.LayerNorm(dtype=dtype, name=f"cross_norm_{name}")(sequence)
                attention = layers.CrossAttention(size.decoder_heads, dtype, name=f"cross_{name}")
                joined = jnp.concatenate([context[other] for other in others], axis=1)
                sequence = sequence + attention(normed, joined, join_ok(ok, known, others))
            blocks = layers.Blocks(size.decoder_depth, size.decoder_heads, size.mlp_ratio, dtype, name=f"blocks_{name}")
            sequence = nn.LayerNorm(dtype=dtype, name=f"norm_{name}")(blocks(sequence))
            out[name] = layers.linear(sequence, outputs[name], f"head_{name}", dtype).astype(jnp.float32)
        return out


class FusionX(nn.Module):
    """Encoder and decoder. `__call__` is the pretraining pass; `encode` gives features of full tiles."""

    config: FusionXConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.contrastive:
            width, dtype = self.config.size.width, jnp.dtype(self.config.dtype)
            self.projectors = {n: layers.Projector(width, dtype, name=f"project_{n}") for n in self.config.names}

    def __call__(
        self,
        images: Mapping[str, Float[Array, "batch _height _width _channels"]],
        masks: Mapping[str, Mask],
    ) -> layers.Output:
        """Predicts every patch of the modalities in `masks` from the visible patches of those in `images`."""
        p = self.config.patch_size
        tokens = self.encode(images, {n: masks[n] for n in images})
        grids = {n: layers.grid(images[n] if n in images else next(iter(images.values())), p) for n in masks}
        positions = {n: layers.sincos_positions(*g, self.config.size.decoder_width) for n, g in grids.items()}
        embedded = {}
        if self.config.contrastive and len(images) > 1:
            for n in images:
                alone = self.encode({n: images[n]}, {n: masks[n]})
                embedded[n] = self.projectors[n](layers.average(alone.groups[n], alone.ok[n]))
        return layers.Output(self.decoder(tokens.groups, masks, positions, self.config.outputs), embedded)

    def encode(
        self,
        images: Mapping[str, Float[Array, "batch _height _width _channels"]],
        masks: Mapping[str, Mask] | None = None,
        has_data: Mapping[str, Bool[Array, "batch _patches"]] | None = None,
    ) -> layers.Tokens:
        """Class token and tokens by modality. Without masks every patch is visible; `has_data` marks those that may be
        attended to (ignored with masks, which carry their own validity)."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))
