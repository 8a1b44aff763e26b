"""Transformer parts shared by every method: attention, blocks, positions, patches. Pre-norm, as in MAE.

Sources: "An Image is Worth 16x16 Words" (arXiv 2010.11929), "Masked Autoencoders Are Scalable Vision Learners"
(arXiv 2111.06377, appendix A: 2-D sine-cosine positions, Xavier-uniform projections).
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Shaped

from fusionx_jax.masking import Mask
from fusionx_jax.models.positions import sincos_positions

_PRODUCT = "product"  # what `linear` gives is known by this name: its rule of differentiation hides the product
# What the backward pass finds of a block: everything, the results of its matrix products, or its input alone.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(_PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}

_dense_init = nn.initializers.xavier_uniform()
_unroll = 0  # blocks in one turn of the loop over them; 0: as `_blocks_a_turn` says


@contextlib.contextmanager
def unrolled(blocks: int = 1 << 10):
    """Traces `blocks` blocks in one turn of the loop over them, by default all.

    XLA's cost analysis counts the body of a loop once, whatever its length; one block a turn compiles fastest.
    """
    global _unroll
    before, _unroll = _unroll, blocks
    try:
        yield
    finally:
        _unroll = before


def _blocks_a_turn(depth: int, remat: str) -> int:
    """On CPU all: nothing is cut from stacked parameters, and a ViT-S step is 12 % faster than with four a turn, 24 %
    than with one, while it compiles as quickly. Elsewhere four, so that compilation does not grow with the depth. One
    where blocks are computed again: within a turn XLA would merge that with the first time."""
    if _unroll:
        return min(depth, _unroll)
    if remat != "none":
        return 1
    return depth if jax.default_backend() == "cpu" else min(depth, 4)


class Output(NamedTuple):
    """What a pretraining pass gives the losses, by modality; a method without one of them leaves it empty.

    `predicted` [B, H, P*P*C] pixels of the patches that its mask hides, in the mask's order (twice that for target
    "both"); `embedded` [B, D], to be contrasted.
    """

    predicted: dict[str, Float[Array, "batch _hidden _pixels"]]
    embedded: dict[str, Float[Array, "batch _dim"]]


class Tokens(NamedTuple):
    """What an encoder gives: a summary token [B, D], and by group (a modality, or "fused" ones) tokens [B, N, D] and
    which of them carry data (None: all)."""

    summary: Float[Array, "batch dim"]
    groups: dict[str, Float[Array, "batch _tokens dim"]]
    ok: dict[str, Bool[Array, "batch _tokens"] | None]


def linear(x: Float[Array, "... inputs"], features: int, name: str, dtype: Any) -> Float[Array, "... features"]:
    """A dense layer called `name` inside the calling module.

    The leading axes are merged first: XLA's CPU backend runs the weight gradient of a 2-D product 13 % faster than
    that of the same product with a batch axis.
    """
    out = over_batch(Dense(features, dtype, name=name)(x.reshape(-1, x.shape[-1])))
    return checkpoint_name(out, _PRODUCT).reshape(*x.shape[:-1], features)


class Dense(nn.Module):
    """`x @ kernel + bias` in `dtype`, its float32 parameters given float32 gradients.

    Flax's own casts the kernel first, so that its gradient is a bfloat16 number, and summed as such over the devices.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows features"]:
        kernel = self.param("kernel", _dense_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _affine(x.astype(self.dtype), kernel, bias)


@jax.custom_vjp
def _affine(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _affine_forward(x, kernel, bias):
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(kept, gradient):
    x, kernel = kept
    of_kernel = jnp.matmul(x.T, gradient, preferred_element_type=kernel.dtype)
    return gradient @ kernel.T.astype(x.dtype), of_kernel, gradient.sum(0, dtype=kernel.dtype)


_affine.defvjp(_affine_forward, _affine_backward)


def over_batch(x: Float[Array, "rows ..."]) -> Float[Array, "rows ..."]:
    """Keeps the leading axis spread over all devices of the mesh that is set (`jax.set_mesh`), if one is.

    Without it XLA may leave parameters where fsdp put them and send activations round instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[0] % mesh.size:  # the last: parameters are made from one example
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def patchify(
    image: Shaped[Array, "batch height width channels"], patch_size: int
) -> Shaped[Array, "batch patches pixels"]:
    """Cuts images whose sides are multiples of `patch_size` into flattened row-major patches [B, N, P*P*C]."""
    b, h, w, c = image.shape
    p = patch_size
    grid = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: Array | np.ndarray, patch_size: int, height: int, width: int) -> Array | np.ndarray:
    """Inverse of `patchify`: [B, N, P*P*C] to [B, H, W, C]."""
    b, _, d = patches.shape
    p = patch_size
    grid = patches.reshape(b, height // p, width // p, p, p, d // (p * p)).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, height, width, d // (p * p))


def grid(image: Array, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image [B, H, W, C]."""
    return image.shape[1] // patch_size, image.shape[2] // patch_size


class Seen(NamedTuple):
    """The patches of one modality that an encoder reads: pixels, position codes, which carry data (None: all)."""

    patches: Float[Array, "batch tokens _pixels"]
    positions: Float[Array, "*rows tokens dim"]
    ok: Bool[Array, "batch tokens"] | None


def see(
    images: Mapping[str, Float[Array, "batch _height _width _channels"]],
    masks: Mapping[str, Mask] | None,
    has_data: Mapping[str, Bool[Array, "batch _patches"]] | None,
    patch_size: int,
    width: int,
) -> dict[str, Seen]:
    """Visible patches by modality; without masks every patch is visible. With masks these carry their own validity.

    Patches are gathered before they are embedded: hidden ones cost nothing.
    """
    out = {}
    for name, image in images.items():
        patches = patchify(image, patch_size)
        codes = jnp.asarray(sincos_positions(*grid(image, patch_size), width))
        if masks is None:
            out[name] = Seen(patches, codes, None if has_data is None else has_data[name])
        else:
            index = masks[name].visible
            patches = jnp.take_along_axis(patches, index[..., None], axis=1)
            out[name] = Seen(patches, jnp.take(codes, index, axis=0), masks[name].visible_ok)
    return out


def average(tokens: Float[Array, "batch tokens dim"], ok: Bool[Array, "batch tokens"] | None) -> Array:
    """Mean [B, D] over the tokens that carry data (zero where none does)."""
    if ok is None:
        return tokens.mean(1)
    return jnp.where(ok[..., None], tokens, 0).sum(1) / jnp.maximum(ok.sum(1, keepdims=True), 1).astype(tokens.dtype)


def fill_up(blank: Float[Array, "patches dim"], known: Array | None, mask: Mask) -> Float[Array, "batch patches dim"]:
    """Full-length sequence: known tokens [B, V, D] at their places, blanks (which carry position) elsewhere.

    It has the dtype of `known` (else of `blank`); blanks are cast last, so that their gradients are summed in theirs.
    """
    batch = mask.visible.shape[0]
    sequence = jnp.broadcast_to(blank, (batch, *blank.shape))
    if known is None:
        return sequence
    sequence = sequence.astype(known.dtype)
    if mask.visible_ok is not None:
        known = jnp.where(mask.visible_ok[..., None], known, jnp.take(blank, mask.visible, axis=0)).astype(known.dtype)
    # Example by example: a scatter whose batch XLA knows as such is not gathered from all devices.
    return jax.vmap(lambda row, at, values: row.at[at].set(values, unique_indices=True))(sequence, mask.visible, known)


def take_hidden(sequence: Float[Array, "batch patches dim"], mask: Mask) -> Float[Array, "batch _hidden dim"]:
    """The places of a full-length sequence that are hidden: heads need predict no others, since no loss reads them."""
    return jax.vmap(lambda row, at: row.at[at].get(unique_indices=True))(sequence, mask.hidden)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection. `ok` [B, N] marks tokens that may be attended to."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], ok: Bool[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        dim = x.shape[-1]
        qkv = linear(x, 3 * dim, "qkv", self.dtype)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        return linear(_attend(q, k, v, self.heads, ok), dim, "out", self.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention of `x` to `context`; a query whose context holds nothing valid receives zero."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        context: Float[Array, "batch others dim"],
        ok: Bool[Array, "batch others"] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        dim = x.shape[-1]
        q = linear(x, dim, "q", self.dtype)
        k, v = jnp.split(linear(context, 2 * dim, "kv", self.dtype), 2, axis=-1)
        out = linear(_attend(q, k, v, self.heads, ok), dim, "out", self.dtype)
        if ok is not None:
            out = jnp.where(ok.any(-1)[:, None, None], out, 0)
        return out


def _attend(q: Array, k: Array, v: Array, heads: int, ok: Array | None) -> Array:
    def split(t):
        return t.reshape(*t.shape[:2], heads, t.shape[-1] // heads)

    bias = None if ok is None else jnp.where(ok, 0.0, -1e9).astype(q.dtype)[:, None, None, :]
    out = jax.nn.dot_product_attention(split(q), split(k), split(v), bias=bias)
    return out.reshape(q.shape)


class Mlp(nn.Module):
    """Two layers with GELU between."""

    ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        hidden = linear(x, int(x.shape[-1] * self.ratio), "up", self.dtype)
        # The tanh form: on CPU the exact one spends more time in erf than in the products.
        return linear(nn.gelu(hidden, approximate=True), x.shape[-1], "down", self.dtype)


class DropPath(nn.Module):
    """Leaves a residual branch out of whole examples with probability `rate` ("Deep Networks with Stochastic Depth",
    arXiv 1603.09382), where a "drop_path" key is given; the kept ones are scaled up."""

    rate: float

    @nn.compact
    def __call__(self, branch: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        if not self.rate or not self.has_rng("drop_path"):
            return branch
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - self.rate, (branch.shape[0], 1, 1))
        return jnp.where(kept, branch / (1 - self.rate), 0)


class Block(nn.Module):
    """Pre-norm transformer block, in the (carry, scanned input) form that `nn.scan` wants.

    With `context` the tokens also attend to it, between self-attention and MLP (as in CROMA's cross encoder).
    """

    heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        ok: Bool[Array, "batch tokens"] | None = None,
        context: Float[Array, "batch others dim"] | None = None,
        context_ok: Bool[Array, "batch others"] | None = None,
    ):
        drop = DropPath(self.drop_path, name="drop_path")
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + drop(SelfAttention(self.heads, self.dtype, name="attention")(normed, ok))
        if context is not None:
            normed = nn.LayerNorm(dtype=self.dtype, name="norm_cross")(x)
            x = x + drop(CrossAttention(self.heads, self.dtype, name="cross")(normed, context, context_ok))
        x = x + drop(Mlp(self.mlp_ratio, self.dtype, name="mlp")(nn.LayerNorm(dtype=self.dtype, name="norm2")(x)))
        return x, None


class Blocks(nn.Module):
    """`depth` blocks, scanned: one compiled body whatever the depth (compile time, TPU). `remat` is a key of REMAT."""

    depth: int
    heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        ok: Bool[Array, "batch tokens"] | None = None,
        context: Float[Array, "batch others dim"] | None = None,
        context_ok: Bool[Array, "batch others"] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        if not self.depth:
            return x
        block = Block
        if self.remat != "none":  # see _blocks_a_turn: nothing can be merged, so nothing need prevent it
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=_blocks_a_turn(self.depth, self.remat),
        )
        blocks = scanned(self.heads, self.mlp_ratio, self.dtype, self.drop_path, name="scan")
        return blocks(x, ok, context, context_ok)[0]


class Projector(nn.Module):
    """From pooled tokens to the space where sensors are contrasted."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
        normed = nn.LayerNorm(dtype=self.dtype, name="norm")(pooled)
        hidden = nn.gelu(linear(normed, pooled.shape[-1], "up", self.dtype), approximate=True)
        return linear(hidden, self.features, "down", self.dtype).astype(jnp.float32)


class Embed(nn.Module):
    """Linear patch embedding of one modality, with its positions and a token that says which modality it is."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, seen: Seen) -> Float[Array, "batch tokens dim"]:
        own = self.param("modality", token_init(), (self.width,))
        embedded = linear(seen.patches, self.width, "patches", self.dtype)
        return (embedded + (seen.positions + own)).astype(self.dtype)  # cast last: gradients are summed in float32


def token_init(stddev: float = 0.02):
    """Initializer of class, mask and modality tokens."""
    return nn.initializers.normal(stddev)
