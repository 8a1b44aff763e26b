"""FusionX-Net: masked autoencoding of co-registered sensors with cross-attention fusion.

After Fus-MAE (arXiv 2401.02764), section 3. Encoder: each modality has its own patch embedding, applied to visible
patches only, and `own_depth` blocks of its own; in the fusion block every modality attends to all others
(`[x; y] + [CA(x<-y); CA(y<-x)]`, then a shared MLP); a class token joins and standard blocks run over the joint
sequence. Decoder: per modality the sequence is filled up with mask tokens, attends to the modalities' encoded tokens
(feature-level fusion), passes a light transformer and a linear head that predicts the patch's pixels.

With `contrastive` the encoder also sees every modality alone, as when the others are missing, and InfoNCE (CROMA, arXiv
2311.00566) draws the embeddings of one tile together: reconstruction alone asks little of a tile's summary.

Differences from the paper: there the fusion block is the first (`own_depth` 0), a decoder attends to the other
modality alone, and nothing is contrasted; the decoder's cross-attention here reads *visible* tokens rather than a
filled-up sequence (mask tokens carry a position and nothing else), and any number of modalities runs through the same
code. A modality that is absent is left out of the sequence; with none other present the cross-attention term is left
out too.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusionx_jax.masking import Mask
from fusionx_jax.models import layers, network
from fusionx_jax.models.positions import sincos_positions


class Encoder(nn.Module):
    """Tokens of the visible patches of every present modality: blocks of its own, then fused ones."""

    config: network.NetworkConfig

    def setup(self):
        c, size, dtype = self.config, self.config.size, jnp.dtype(self.config.dtype)

        def blocks(depth):
            return layers.Blocks(depth, size.heads, size.mlp_ratio, dtype, c.drop_path, c.remat)

        self.embed = {n: layers.Embed(size.width, dtype) for n in c.names}
        if c.own_depth:
            self.own = {n: blocks(c.own_depth) for n in c.names}
        if c.cross_attention in ("both", "encoder"):
            self.fusion_norm = {n: nn.LayerNorm(dtype=dtype) for n in c.names}
            self.fusion = {n: layers.CrossAttention(size.heads, dtype) for n in c.names}
            self.fusion_mlp_norm = nn.LayerNorm(dtype=dtype)
            self.fusion_mlp = layers.Mlp(size.mlp_ratio, dtype)
        else:
            self.first = layers.Block(size.heads, size.mlp_ratio, dtype)
        self.class_token = self.param("class_token", layers.token_init(), (1, 1, size.width))
        self.blocks = blocks(size.depth - c.own_depth)
        self.norm = nn.LayerNorm(dtype=dtype)

    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        """Class token and tokens by modality, after the final norm."""
        return self.fuse(self.alone(seen), {n: seen[n].ok for n in seen})

    def alone(self, seen: Mapping[str, layers.Seen]) -> dict[str, Float[Array, "batch _tokens dim"]]:
        """Every modality's tokens after its own blocks: nothing of the others is in them."""
        tokens = {n: self.embed[n](seen[n]) for n in self.config.names if n in seen}
        if not self.config.own_depth:
            return tokens
        return {n: self.own[n](tokens[n], seen[n].ok) for n in tokens}

    def fuse(
        self,
        tokens: Mapping[str, Float[Array, "batch _tokens dim"]],
        ok: Mapping[str, Bool[Array, "batch _tokens"] | None],
    ) -> layers.Tokens:
        """The fusion block and the joint blocks over the tokens of `alone`, of all modalities or of some."""
        present = list(tokens)
        width, dtype = self.config.size.width, jnp.dtype(self.config.dtype)
        cross = self.config.cross_attention in ("both", "encoder")
        joint = self._fusion_block(tokens, ok) if cross else self._joint_block(tokens, ok)
        first = jnp.broadcast_to(self.class_token, (joint.shape[0], 1, width)).astype(dtype)
        joint = self.norm(self.blocks(jnp.concatenate([first, joint], axis=1), join_ok(ok, tokens, present, lead=1)))
        groups = dict(zip(present, jnp.split(joint[:, 1:], _offsets(tokens, present), axis=1)))
        return layers.Tokens(joint[:, 0], groups, {n: ok[n] for n in present})

    def _joint_block(self, tokens, ok):
        """An ordinary block, where the config leaves the encoder's cross-attention out."""
        return self.first(jnp.concatenate(list(tokens.values()), axis=1), join_ok(ok, tokens, list(tokens)))[0]

    def _fusion_block(self, tokens, ok):
        """Every modality attends to all others; then a shared MLP."""
        normed = {n: self.fusion_norm[n](x) for n, x in tokens.items()}
        fused = dict(tokens)
        if len(tokens) > 1:
            for name in tokens:
                others = [o for o in tokens if o != name]
                context = jnp.concatenate([normed[o] for o in others], axis=1)
                fused[name] += self.fusion[name](normed[name], context, join_ok(ok, tokens, others))
        joint = jnp.concatenate(list(fused.values()), axis=1)
        return joint + self.fusion_mlp(self.fusion_mlp_norm(joint))


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


def encoder_groups(config: network.NetworkConfig, params: PyTree) -> network.LayerGroups:
    """Layer groups of `Encoder`: the joint blocks, the fusion block, each modality's blocks, the patch embeddings.

    The final norm is trained with the last block, the class token with the fusion block, whose output it joins.
    """
    joint = config.size.depth - config.own_depth
    below = joint + 1
    stacks = {"blocks": 0, **{f"own_{n}": below for n in config.names}}
    level = {"norm": 0, **dict.fromkeys(("class_token", "first", "fusion_mlp_norm", "fusion_mlp"), joint)}
    for name in config.names:
        level |= {f"fusion_norm_{name}": joint, f"fusion_{name}": joint, f"embed_{name}": below + config.own_depth}
    return network.make_groups(
        {
            key: network.scanned_distances(x, stacks[key]) if key in stacks else network.at_distance(x, level[key])
            for key, x in params.items()
        }
    )


class Decoder(nn.Module):
    """One light decoder per modality, each reading all others' encoded tokens. Predicts the hidden patches' pixels."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(
        self,
        tokens: Mapping[str, Float[Array, "batch _visible _dim"]],
        masks: Mapping[str, Mask],
        positions: Mapping[str, Float[np.ndarray, "_patches _width"]],
        outputs: Mapping[str, int],
    ) -> dict[str, Float[Array, "batch _hidden _pixels"]]:
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
                known[name] = (projected + jnp.take(place[name], masks[name].visible, axis=0)).astype(dtype)
        ok = {name: masks[name].visible_ok for name in known}
        crossing = self.config.cross_attention in ("both", "decoder")
        context = {
            name: nn.LayerNorm(dtype=dtype, name=f"context_norm_{name}")(known[name]) for name in known if crossing
        }
        out = {}
        for name in wanted:
            blank = self.param(f"mask_{name}", layers.token_init(), (width,))
            sequence = layers.fill_up(place[name] + blank, known.get(name), masks[name]).astype(dtype)
            others = [other for other in known if other != name or self.config.decoder_context == "all"]
            if crossing and others:
                normed = nn.LayerNorm(dtype=dtype, name=f"cross_norm_{name}")(sequence)
                attention = layers.CrossAttention(size.decoder_heads, dtype, name=f"cross_{name}")
                joined = jnp.concatenate([context[other] for other in others], axis=1)
                sequence = sequence + attention(normed, joined, join_ok(ok, known, others))
            blocks = layers.Blocks(
                size.decoder_depth, size.decoder_heads, size.mlp_ratio, dtype, remat=self.config.remat,
                name=f"blocks_{name}",
            )  # fmt: skip
            sequence = layers.take_hidden(blocks(sequence), masks[name])
            sequence = nn.LayerNorm(dtype=dtype, name=f"norm_{name}")(sequence)
            out[name] = layers.linear(sequence, outputs[name], f"head_{name}", dtype).astype(jnp.float32)
        return out


class FusionX(nn.Module):
    """Encoder and decoder. `__call__` is the pretraining pass; `encode` gives features of full tiles."""

    config: network.NetworkConfig
    traits: ClassVar[network.Traits] = network.Traits()
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

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
        """Predicts the hidden patches of the modalities in `masks` from the visible ones of those in `images`."""
        p = self.config.patch_size
        seen = layers.see(images, {n: masks[n] for n in images}, None, p, self.config.size.width)
        ok = {n: seen[n].ok for n in seen}
        own = self.encoder.alone(seen)
        tokens = self.encoder.fuse(own, ok)
        grids = {n: layers.grid(images[n] if n in images else next(iter(images.values())), p) for n in masks}
        positions = {n: sincos_positions(*g, self.config.size.decoder_width) for n, g in grids.items()}
        embedded = {}
        if self.config.contrastive and len(images) > 1:
            for n in images:
                alone = self.encoder.fuse({n: own[n]}, ok)
                embedded[n] = self.projectors[n](layers.average(alone.groups[n], ok[n]))
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

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """See `encoder_groups`."""
        return encoder_groups(self.config, params)
