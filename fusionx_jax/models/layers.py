"""Transformer parts shared by every method: attention, blocks, positions, patches. Pre-norm, as in MAE.

Sources: "An Image is Worth 16x16 Words" (arXiv 2010.11929), "Masked Autoencoders Are Scalable Vision Learners"
(arXiv 2111.06377, appendix A: 2-D sine-cosine positions, Xavier-uniform projections).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from fusionx_jax.masking import Mask
from fusionx_jax.models.positions import sincos_positions

_MATMUL = "matmul"  # checkpoint name of the output of `linear`, whose custom_vjp hides the matmul from remat policies
# What the backward pass reads of a block: all activations, the outputs of its matmuls, or its input alone.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_only_these_names(_MATMUL),
    "full": jax.checkpoint_policies.nothing_saveable,
}

_dense_init = nn.initializers.xavier_uniform()


def scan_unroll(depth: int, remat: str) -> int:
    """Number of blocks per iteration of the scan over `depth` blocks, by backend.

    On CPU all: nothing is sliced from stacked parameters, and a ViT-S step is 12 % faster than with four blocks per
    iteration and 24 % faster than with one, while it compiles as quickly. Elsewhere four, so that compile time does not
    grow with depth. One with rematerialization: within an iteration XLA would merge recomputation and original.
    """
    if remat != "none":
        return 1
    return depth if jax.default_backend() == "cpu" else min(depth, 4)


class Output(NamedTuple):
    """Input of the losses, by modality. A network without one of them leaves it empty.

    Attributes:
      predicted: P*P*C pixels of every hidden patch, in the order of `Mask.hidden` (twice as many for target "both").
      embedded: embedding of each example, for InfoNCE.
      tokens: what the encoder gives for the visible patches; None where the network has no such pass.
    """

    predicted: dict[str, Float[Array, "batch _hidden _pixels"]]
    embedded: dict[str, Float[Array, "batch _dim"]]
    tokens: "Tokens | None" = None


class Tokens(NamedTuple):
    """Output of an encoder.

    Attributes:
      summary: one token per example.
      groups: tokens by group: a modality, "stacked" channels, or "fused" tokens of several modalities.
      ok: tokens with data, by group. None: all.
    """

    summary: Float[Array, "batch dim"]
    groups: dict[str, Float[Array, "batch _tokens dim"]]
    ok: dict[str, Bool[Array, "batch _tokens"] | None]


def linear(x: Float[Array, "... inputs"], features: int, name: str, dtype: DTypeLike) -> Float[Array, "... features"]:
    """A dense layer with the parameters `name` of the calling module.

    The leading axes are merged first: XLA's CPU backend runs the weight gradient of a 2-D product 13 % faster than
    that of the same product with a batch axis.
    """
    out = over_batch(Dense(features, dtype, name=name)(x.reshape(-1, x.shape[-1])))
    return checkpoint_name(out, _MATMUL).reshape(*x.shape[:-1], features)


class Dense(nn.Module):
    """`x @ kernel + bias` in `dtype`, with float32 gradients of the float32 parameters.

    `flax.linen.Dense` casts the kernel first: its gradient is then rounded to bfloat16 and summed as such over devices.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "rows inputs"]) -> Float[Array, "rows features"]:
        kernel = self.param("kernel", _dense_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _affine(x.astype(self.dtype), kernel, bias)


@jax.custom_vjp
def _affine(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _affine_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _affine(x, kernel, bias), (x, kernel)


def _affine_backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel = residuals
    kernel_gradient = jnp.matmul(x.T, gradient, preferred_element_type=kernel.dtype)
    return gradient @ kernel.T.astype(x.dtype), kernel_gradient, gradient.sum(0, dtype=kernel.dtype)


_affine.defvjp(_affine_forward, _affine_backward)


def over_batch(x: Float[Array, "rows ..."]) -> Float[Array, "rows ..."]:
    """Keeps the leading axis sharded over all devices of the current mesh (`jax.set_mesh`), if there is one.

    Without the constraint XLA may leave parameters sharded as fsdp has them and communicate activations instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or x.shape[0] % mesh.size:  # the last: parameters are initialized from one example
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
    """Visible patches of one modality: pixels, position encodings, and which have data (None: all)."""

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
    """Visible patches by modality. Without masks every patch is visible, and `has_data` gives the validity; with masks
    their `visible_ok` does.

    Patches are gathered before they are embedded, so hidden ones cost nothing.
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


def joint_average(tokens: Tokens) -> Float[Array, "batch dim"]:
    """Mean of the tokens in which the modalities are joined: the "fused" ones, or those of all groups."""
    groups = {"fused": tokens.groups["fused"]} if "fused" in tokens.groups else tokens.groups
    return jnp.stack([average(x, tokens.ok[n]) for n, x in groups.items()]).mean(0)


def average(
    tokens: Float[Array, "batch tokens dim"], ok: Bool[Array, "batch tokens"] | None
) -> Float[Array, "batch dim"]:
    """Mean over the tokens with data, zero for an example without any."""
    if ok is None:
        return tokens.mean(1)
    return jnp.where(ok[..., None], tokens, 0).sum(1) / jnp.maximum(ok.sum(1, keepdims=True), 1).astype(tokens.dtype)


def fill_up(
    blank: Float[Array, "patches dim"], known: Float[Array, "batch visible dim"] | None, mask: Mask
) -> Float[Array, "batch patches dim"]:
    """Full-length sequence: `known` at the visible patches, `blank` (mask token plus position) at all others.

    The dtype is that of `known`, else of `blank`. `blank` is cast last, so that its gradient is summed in its dtype.
    """
    batch = mask.visible.shape[0]
    sequence = jnp.broadcast_to(blank, (batch, *blank.shape))
    if known is None:
        return sequence
    sequence = sequence.astype(known.dtype)
    if mask.visible_ok is not None:
        known = jnp.where(mask.visible_ok[..., None], known, jnp.take(blank, mask.visible, axis=0)).astype(known.dtype)

    def scatter(row: Array, index: Array, values: Array) -> Array:
        return row.at[index].set(values, unique_indices=True)

    return jax.vmap(scatter)(sequence, mask.visible, known)  # a batched scatter is not gathered from all devices


def take_hidden(sequence: Float[Array, "batch patches dim"], mask: Mask) -> Float[Array, "batch _hidden dim"]:
    """Tokens of the hidden patches, the only ones that losses read."""

    def gather(row: Array, index: Array) -> Array:
        return row.at[index].get(unique_indices=True)

    return jax.vmap(gather)(sequence, mask.hidden)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection. `ok` [B, N] marks tokens that may be attended to."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], ok: Bool[Array, "batch tokens"] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        dim = x.shape[-1]
        qkv = linear(x, 3 * dim, "qkv", self.dtype)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        return linear(_attend(q, k, v, self.heads, ok), dim, "out", self.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention of `x` to `context`; the output is zero for an example whose context has no valid token."""

    heads: int
    dtype: DTypeLike = jnp.float32

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
    def split(t: Array) -> Array:
        return t.reshape(*t.shape[:2], heads, t.shape[-1] // heads)

    bias = None if ok is None else jnp.where(ok, 0.0, -1e9).astype(q.dtype)[:, None, None, :]
    out = jax.nn.dot_product_attention(split(q), split(k), split(v), bias=bias)
    return out.reshape(q.shape)


class Mlp(nn.Module):
    """Two dense layers with GELU between them."""

    ratio: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
        hidden = linear(x, int(x.shape[-1] * self.ratio), "up", self.dtype)
        # The tanh approximation: on CPU the exact GELU takes more time than the matmuls.
        return linear(nn.gelu(hidden, approximate=True), x.shape[-1], "down", self.dtype)


class DropPath(nn.Module):
    """Drops the residual branch of whole examples with probability `rate` ("Deep Networks with Stochastic Depth", arXiv
    1603.09382) and scales the others up. Active only where a "drop_path" key is given."""

    rate: float

    @nn.compact
    def __call__(self, branch: Float[Array, "batch *axes"]) -> Float[Array, "batch *axes"]:
        if not self.rate or not self.has_rng("drop_path"):
            return branch
        kept = jax.random.bernoulli(
            self.make_rng("drop_path"), 1 - self.rate, (branch.shape[0], *[1] * (branch.ndim - 1))
        )
        return jnp.where(kept, branch / (1 - self.rate), 0)


class Block(nn.Module):
    """Pre-norm transformer block that returns (carry, None), as `nn.scan` expects.

    With `context` it has cross-attention between self-attention and MLP, as CROMA's cross encoder.
    """

    heads: int
    mlp_ratio: float
    dtype: DTypeLike = jnp.float32
    drop_path: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        ok: Bool[Array, "batch tokens"] | None = None,
        context: Float[Array, "batch others dim"] | None = None,
        context_ok: Bool[Array, "batch others"] | None = None,
    ) -> tuple[Float[Array, "batch tokens dim"], None]:
        drop = DropPath(self.drop_path, name="drop_path")
        normed = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = x + drop(SelfAttention(self.heads, self.dtype, name="attention")(normed, ok))
        if context is not None:
            normed = nn.LayerNorm(dtype=self.dtype, name="norm_cross")(x)
            x = x + drop(CrossAttention(self.heads, self.dtype, name="cross")(normed, context, context_ok))
        x = x + drop(Mlp(self.mlp_ratio, self.dtype, name="mlp")(nn.LayerNorm(dtype=self.dtype, name="norm2")(x)))
        return x, None


class Blocks(nn.Module):
    """`depth` scanned blocks: the compiled program has one body whatever the depth.

    Attributes:
      remat: a key of REMAT.
      unroll: blocks per iteration of the scan; 0: `scan_unroll`.
    """

    depth: int
    heads: int
    mlp_ratio: float
    dtype: DTypeLike = jnp.float32
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 0

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
        if self.remat != "none":  # one block per iteration: nothing to merge with
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=min(self.unroll, self.depth) or scan_unroll(self.depth, self.remat),
        )
        blocks = scanned(self.heads, self.mlp_ratio, self.dtype, self.drop_path, name="scan")
        return blocks(x, ok, context, context_ok)[0]


class Projector(nn.Module):
    """Maps pooled tokens to the embedding that InfoNCE compares."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch features"]:
        normed = nn.LayerNorm(dtype=self.dtype, name="norm")(pooled)
        hidden = nn.gelu(linear(normed, pooled.shape[-1], "up", self.dtype), approximate=True)
        return linear(hidden, self.features, "down", self.dtype).astype(jnp.float32)


class Embed(nn.Module):
    """Linear patch embedding of one modality plus position encodings and a learned modality embedding."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, seen: Seen) -> Float[Array, "batch tokens dim"]:
        modality = self.param("modality", token_init(), (self.width,))
        embedded = linear(seen.patches, self.width, "patches", self.dtype)
        return (embedded + (seen.positions + modality)).astype(self.dtype)  # cast last: gradients are summed in float32


def token_init(stddev: float = 0.02) -> nn.initializers.Initializer:
    """Initializer of class, mask and modality tokens; the standard deviation is that of MAE's official code."""
    return nn.initializers.normal(stddev)
