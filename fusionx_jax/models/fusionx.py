"""FusionX-Net: masked autoencoding of co-registered modalities with cross-attention fusion.

After Fus-MAE (arXiv 2401.02764, section 3). Encoder: every modality has a patch embedding, applied to visible patches
only, and `own_depth` blocks of its own; in the fusion block each modality attends to all others (`[x; y] + [CA(x<-y);
CA(y<-x)]`, then a shared MLP); a class token joins, and standard blocks run over the joint sequence. Decoder: for each
modality the sequence is completed with mask tokens, attends to encoded tokens (feature-level fusion), passes a light
transformer and a linear head that predicts pixels.

With `contrastive` the encoder also encodes every modality alone, as when the others are missing, and InfoNCE (CROMA,
arXiv 2311.00566) is computed between the embeddings of one tile: reconstruction alone constrains the summary of a tile
little.

Differences from the paper: there the fusion block is the first (`own_depth` 0), a decoder attends to the other modality
only, and there is no InfoNCE. Here the decoder's cross-attention reads *visible* tokens instead of a completed sequence
(a mask token carries its position and nothing else), and the number of modalities is arbitrary. A missing modality is
left out of the sequence; if it leaves one modality, there is no cross-attention term.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from fusionx_jax.masking import Mask
from fusionx_jax.models import layers, network
from fusionx_jax.models.network import HasData, Images, Masks
from fusionx_jax.models.positions import sincos_positions

Tokens = Mapping[str, Float[Array, "batch _tokens _dim"]]
Valid = Mapping[str, Bool[Array, "batch _tokens"] | None]


class Encoder(nn.Module):
    """Encodes the visible patches of every available modality: blocks of its own, the fusion block, joint blocks."""

    config: network.NetworkConfig

    def setup(self) -> None:
        c, size, dtype = self.config, self.config.size, jnp.dtype(self.config.dtype)
        self.embed = {n: layers.Embed(size.width, dtype) for n in c.names}
        if c.own_depth:
            self.own = {n: network.encoder_blocks(c, c.own_depth) for n in c.names}
        if c.cross_attention in ("both", "encoder"):
            self.fusion_norm = {n: nn.LayerNorm(dtype=dtype) for n in c.names}
            self.fusion = {n: layers.CrossAttention(size.heads, dtype) for n in c.names}
            self.fusion_mlp_norm = nn.LayerNorm(dtype=dtype)
            self.fusion_mlp = layers.Mlp(size.mlp_ratio, dtype)
        else:
            self.first = layers.Block(size.heads, size.mlp_ratio, dtype)
        self.class_token = self.param("class_token", layers.token_init(), (1, 1, size.width))
        self.blocks = network.encoder_blocks(c, size.depth - c.own_depth)
        self.norm = nn.LayerNorm(dtype=dtype)

    def __call__(self, seen: Mapping[str, layers.Seen]) -> layers.Tokens:
        """Class token and tokens by modality, after the final norm."""
        return self.fuse(self.alone(seen), {n: seen[n].ok for n in seen})

    def alone(self, seen: Mapping[str, layers.Seen]) -> dict[str, Float[Array, "batch _tokens dim"]]:
        """Tokens of every modality after its own blocks; they do not depend on the other modalities."""
        tokens = {n: self.embed[n](seen[n]) for n in self.config.names if n in seen}
        if not self.config.own_depth:
            return tokens
        return {n: self.own[n](tokens[n], seen[n].ok) for n in tokens}

    def fuse(self, tokens: Tokens, ok: Valid) -> layers.Tokens:
        """Applies the fusion block and the joint blocks to the tokens of `alone`, of any subset of the modalities."""
        available = list(tokens)
        width, dtype = self.config.size.width, jnp.dtype(self.config.dtype)
        cross = self.config.cross_attention in ("both", "encoder")
        joint = self._fusion_block(tokens, ok) if cross else self._joint_block(tokens, ok)
        first = jnp.broadcast_to(self.class_token, (joint.shape[0], 1, width)).astype(dtype)
        joint = self.norm(self.blocks(jnp.concatenate([first, joint], axis=1), join_ok(ok, tokens, available, lead=1)))
        ends = np.cumsum([tokens[n].shape[1] for n in available])[:-1].tolist()
        groups = dict(zip(available, jnp.split(joint[:, 1:], ends, axis=1)))
        return layers.Tokens(joint[:, 0], groups, {n: ok[n] for n in available})

    def _joint_block(self, tokens: Tokens, ok: Valid) -> Float[Array, "batch _tokens dim"]:
        """A standard block, for a config without cross-attention in the encoder."""
        return self.first(jnp.concatenate(list(tokens.values()), axis=1), join_ok(ok, tokens, list(tokens)))[0]

    def _fusion_block(self, tokens: Tokens, ok: Valid) -> Float[Array, "batch _tokens dim"]:
        """Each modality attends to all others, then a shared MLP."""
        normed = {n: self.fusion_norm[n](x) for n, x in tokens.items()}
        fused = dict(tokens)
        if len(tokens) > 1:
            for name in tokens:
                others = [other for other in tokens if other != name]
                context = jnp.concatenate([normed[other] for other in others], axis=1)
                fused[name] += self.fusion[name](normed[name], context, join_ok(ok, tokens, others))
        joint = jnp.concatenate(list(fused.values()), axis=1)
        return joint + self.fusion_mlp(self.fusion_mlp_norm(joint))


def join_ok(ok: Valid, tokens: Tokens, names: Sequence[str], lead: int = 0) -> Bool[Array, "batch _tokens"] | None:
    """Validity of the concatenated tokens of `names` after `lead` tokens that are always valid; None if all are."""
    if all(ok.get(n) is None for n in names):
        return None
    batch = tokens[names[0]].shape[0]
    parts = [jnp.ones((batch, lead), bool)] if lead else []
    for name in names:
        valid = ok.get(name)
        parts.append(jnp.ones(tokens[name].shape[:2], bool) if valid is None else valid)
    return jnp.concatenate(parts, axis=1)


def encoder_groups(config: network.NetworkConfig, params: PyTree) -> network.LayerGroups:
    """Layer groups of `Encoder`: the joint blocks, the fusion block, each modality's blocks, the patch embeddings.

    The final norm is in the group of the last block, the class token in that of the fusion block.
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
    """One light decoder per modality, which reads encoded tokens and predicts the pixels of hidden patches."""

    config: network.NetworkConfig

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        masks: Masks,
        positions: Mapping[str, Float[np.ndarray, "_patches _width"]],
        outputs: Mapping[str, int],
    ) -> dict[str, Float[Array, "batch _hidden _pixels"]]:
        """Predicts `outputs[name]` numbers for every hidden patch of each modality in `masks`.

        `tokens` are the encoder's. A modality in `masks` but not in `tokens` is decoded from the others alone.
        """
        dtype, width = jnp.dtype(self.config.dtype), self.config.size.decoder_width
        decoded = [name for name in self.config.names if name in masks]
        places, known = {}, {}
        for name in decoded:
            places[name] = jnp.asarray(positions[name]) + self.param(f"modality_{name}", layers.token_init(), (width,))
            if name in tokens:
                projected = layers.linear(tokens[name], width, f"project_{name}", dtype)
                known[name] = (projected + jnp.take(places[name], masks[name].visible, axis=0)).astype(dtype)
        context = {}
        if self.config.cross_attention in ("both", "decoder"):
            context = {n: nn.LayerNorm(dtype=dtype, name=f"context_norm_{n}")(x) for n, x in known.items()}
        ok = {name: masks[name].visible_ok for name in known}
        predicted = {}
        for name in decoded:
            blank = places[name] + self.param(f"mask_{name}", layers.token_init(), (width,))
            sequence = layers.fill_up(blank, known.get(name), masks[name]).astype(dtype)
            sequence = self._attend(name, sequence, context, ok)
            predicted[name] = self._predict(name, sequence, masks[name], outputs[name])
        return predicted

    def _attend(
        self, name: str, sequence: Float[Array, "batch _patches width"], context: Tokens, ok: Valid
    ) -> Float[Array, "batch _patches width"]:
        """Adds cross-attention of modality `name` to the context of the other modalities, or of all."""
        others = [other for other in context if other != name or self.config.decoder_context == "all"]
        if not others:
            return sequence
        dtype = jnp.dtype(self.config.dtype)
        normed = nn.LayerNorm(dtype=dtype, name=f"cross_norm_{name}")(sequence)
        attention = layers.CrossAttention(self.config.size.decoder_heads, dtype, name=f"cross_{name}")
        joined = jnp.concatenate([context[other] for other in others], axis=1)
        return sequence + attention(normed, joined, join_ok(ok, context, others))

    def _predict(
        self, name: str, sequence: Float[Array, "batch _patches width"], mask: Mask, outputs: int
    ) -> Float[Array, "batch _hidden _pixels"]:
        """Applies the blocks and the head of modality `name`."""
        dtype = jnp.dtype(self.config.dtype)
        blocks = network.decoder_blocks(self.config, name=f"blocks_{name}")
        hidden = layers.take_hidden(blocks(sequence), mask)
        hidden = nn.LayerNorm(dtype=dtype, name=f"norm_{name}")(hidden)
        return layers.linear(hidden, outputs, f"head_{name}", dtype).astype(jnp.float32)


class FusionX(nn.Module):
    """Encoder and decoder; see the module docstring."""

    config: network.NetworkConfig
    traits: ClassVar[network.Traits] = network.Traits()
    config_class: ClassVar[type[network.NetworkConfig]] = network.NetworkConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.contrastive:
            width, dtype = self.config.size.width, jnp.dtype(self.config.dtype)
            self.projectors = {n: layers.Projector(width, dtype, name=f"project_{n}") for n in self.config.names}

    def __call__(self, images: Images, masks: Masks) -> layers.Output:
        """Predicts the hidden patches of the modalities in `masks` from the visible patches of those in `images`."""
        p = self.config.patch_size
        seen = layers.see(images, {n: masks[n] for n in images}, None, p, self.config.size.width)
        ok = {n: seen[n].ok for n in seen}
        alone = self.encoder.alone(seen)
        tokens = self.encoder.fuse(alone, ok)
        grids = {n: layers.grid(images[n] if n in images else next(iter(images.values())), p) for n in masks}
        positions = {n: sincos_positions(*g, self.config.size.decoder_width) for n, g in grids.items()}
        embedded = {}
        if self.config.contrastive and len(images) > 1:
            for n in images:
                encoded = self.encoder.fuse({n: alone[n]}, ok)
                embedded[n] = self.projectors[n](layers.average(encoded.groups[n], ok[n]))
        return layers.Output(self.decoder(tokens.groups, masks, positions, self.config.outputs), embedded, tokens)

    def encode(self, images: Images, masks: Masks | None = None, has_data: HasData | None = None) -> layers.Tokens:
        """Class token and tokens by modality; see `Network.encode`."""
        return self.encoder(layers.see(images, masks, has_data, self.config.patch_size, self.config.size.width))

    @nn.nowrap
    def layer_groups(self, params: PyTree) -> network.LayerGroups:
        """See `encoder_groups`."""
        return encoder_groups(self.config, params)
