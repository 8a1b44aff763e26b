"""Which patches are visible: pure functions of (key, shape), one small family.

Independent masking draws each sensor's visible patches on its own; consistent masking shows the same places in all
(Fus-MAE, arXiv 2401.02764, section 3). Around them stand the strategies of neighboring methods: a token budget shared
by Dirichlet shares (MultiMAE, arXiv 2204.01678, section 3.2), complementary masks, blocks (BEiT, arXiv 2106.08254,
section 2.3) and whole modalities dropped (DINO-MM, arXiv 2204.05381, section 2.2). Groups of bands that are to be
hidden on their own are modalities of their own (`band_groups` in the config), so every strategy masks them too.

Every example has its own draw. The number of visible slots is static, so shapes are; a slot that shows nothing (its
patch has no data, or the example's share is smaller) is marked invalid and no one attends to it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fusionx_jax.errors import InputError

Grids = Mapping[str, tuple[int, int]]  # rows and columns of each modality's patches
HasData = Mapping[str, Bool[Array, "batch _patches"]] | None


class Mask(NamedTuple):
    """Visible and hidden patches of one modality, by position in the row-major patch grid.

    `visible` [B, V] are the slots the encoder reads and `hidden` [B, H] the patches the loss looks at. Where
    `visible_ok` or `hidden_ok` is False a slot does not count (None: all count). A patch is in at most one of the two.
    """

    visible: Int[Array, "batch visible"]
    hidden: Int[Array, "batch hidden"]
    visible_ok: Bool[Array, "batch visible"] | None
    hidden_ok: Bool[Array, "batch hidden"] | None = None


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Visible patches for a mask ratio: at least one visible and one hidden.

    Raises:
      InputError: the ratio is not between 0 and 1, or the grid has a single patch.
    """
    if not 0.0 < mask_ratio < 1.0:
        raise InputError(f"mask_ratio is {mask_ratio}; it must lie between 0 and 1, both excluded (0.75 is usual).")
    if num_patches < 2:
        raise InputError(
            f"A tile gives {num_patches} patch; masking needs at least 2: use larger tiles or a smaller patch_size."
        )
    return min(max(1, round(num_patches * (1.0 - mask_ratio))), num_patches - 1)


def _split(noise: Float[Array, "batch patches"], visible: int, has_data: Bool[Array, "batch patches"] | None) -> Mask:
    """The `visible` patches of least noise are visible; patches without data come last."""
    order = _ranked(noise, has_data)
    shown = order[:, :visible]
    ok = None if has_data is None else jnp.take_along_axis(has_data, shown, axis=1)
    return Mask(shown, order[:, visible:], ok)


def _ranked(noise: Array, has_data: Array | None) -> Array:
    return jnp.argsort(noise if has_data is None else jnp.where(has_data, noise, jnp.inf), axis=1)


def _split_by_share(noise: Array, slots: int, shown: Int[Array, "batch"], has_data: Array | None) -> Mask:
    """The `shown` patches of least noise are visible, another number in every example, at most `slots`."""
    order = _ranked(noise, has_data)
    counts = jnp.arange(order.shape[1])[None] < shown[:, None]
    ok = counts[:, :slots]
    if has_data is not None:
        ok &= jnp.take_along_axis(has_data, order[:, :slots], axis=1)
    return Mask(order[:, :slots], order, ok, ~counts)


def _size(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


def _noise(key: Array, batch: int, grids: Grids) -> dict[str, Array]:
    return {
        name: jax.random.uniform(jax.random.fold_in(key, i), (batch, _size(grids[name])))
        for i, name in enumerate(sorted(grids))
    }


def _of(has_data: HasData, name: str) -> Array | None:
    return None if has_data is None else has_data[name]


def independent(
    key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
) -> dict[str, Mask]:
    """Each modality its own patches. `has_data` marks patches with at least one valid pixel."""
    noise = _noise(key, batch, grids)
    return {name: _split(noise[name], visible[name], _of(has_data, name)) for name in grids}


def consistent(
    key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
) -> dict[str, Mask]:
    """The same patches in every modality; a place counts as having data if some modality has it there.

    Raises:
      InputError: grids or ratios differ between modalities, so that "the same patches" has no meaning.
    """
    if len(set(grids.values())) > 1 or len(set(visible.values())) > 1:
        raise InputError(
            f"Consistent masking shows the same patches in all modalities, but their grids are {dict(grids)} and "
            f"their visible counts {dict(visible)}; give equal mask_ratio and patch_size, or use masking='independent'."
        )
    noise = jax.random.uniform(key, (batch, _size(next(iter(grids.values())))))
    count = next(iter(visible.values()))
    if has_data is None:
        return dict.fromkeys(grids, _split(noise, count, None))
    somewhere = jnp.stack(list(has_data.values())).any(0)
    shared = _split(noise, count, somewhere)
    return {
        name: shared._replace(visible_ok=jnp.take_along_axis(has_data[name], shared.visible, axis=1)) for name in grids
    }


def complementary(
    key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
) -> dict[str, Mask]:
    """No place is visible in two modalities; with two and half of the patches hidden, what one hides the other shows.

    Raises:
      InputError: grids differ, or more patches are to be visible than there are places.
    """
    if len(set(grids.values())) > 1 or sum(visible.values()) > _size(next(iter(grids.values()))):
        raise InputError(
            f"Complementary masking shows each place in one modality at most, but the grids are {dict(grids)} and the "
            f"visible counts {dict(visible)}; give equal grids and a higher mask_ratio."
        )
    noise = jax.random.uniform(key, (batch, _size(next(iter(grids.values())))))
    masks, start = {}, 0
    order = jnp.argsort(noise, axis=1)
    for name in sorted(grids):
        turned = jnp.roll(order, -start, axis=1)  # its own places first, everyone else's after
        shown, has = turned[:, : visible[name]], _of(has_data, name)
        ok = None if has is None else jnp.take_along_axis(has, shown, axis=1)
        masks[name] = Mask(shown, turned[:, visible[name] :], ok)
        start += visible[name]
    return masks


def dirichlet(
    key: Key[Array, ""],
    batch: int,
    grids: Grids,
    visible: Mapping[str, int],
    has_data: HasData = None,
    *,
    alpha: float = 1.0,
) -> dict[str, Mask]:
    """The modalities' visible patches form one budget, shared anew in every example by a symmetric Dirichlet draw.

    Shapes are static: every modality has slots for the whole budget (its grid permitting); validity says which count.
    At least one patch of the budget is visible, at most all of a grid.
    """
    names = sorted(grids)
    budget = sum(visible.values())
    share = jax.random.dirichlet(jax.random.fold_in(key, len(names)), jnp.full(len(names), alpha), (batch,))
    edges = jnp.round(jnp.cumsum(share, axis=1) * budget).astype(jnp.int32)
    counts = jnp.diff(edges.at[:, -1].set(budget), prepend=0, axis=1)
    noise = _noise(key, batch, grids)
    return {
        name: _split_by_share(
            noise[name], min(budget, _size(grids[name]) - 1), counts[:, i].clip(0, _size(grids[name]) - 1),
            _of(has_data, name),
        )
        for i, name in enumerate(names)
    }  # fmt: skip


def block(
    key: Key[Array, ""],
    batch: int,
    grids: Grids,
    visible: Mapping[str, int],
    has_data: HasData = None,
    *,
    block_size: int = 2,
) -> dict[str, Mask]:
    """Like `independent`, but whole squares of `block_size` x `block_size` patches are shown or hidden together.

    The square at the edge of the count is shown in part, so that the number of visible patches is exact.
    """
    masks = {}
    for i, name in enumerate(sorted(grids)):
        rows, columns = grids[name]
        squares = (batch, -(-rows // block_size), -(-columns // block_size))
        noise = jax.random.uniform(jax.random.fold_in(key, i), squares)
        noise = jnp.repeat(jnp.repeat(noise, block_size, 1), block_size, 2)[:, :rows, :columns]
        masks[name] = _split(noise.reshape(batch, -1), visible[name], _of(has_data, name))
    return masks


def modality_drop(
    key: Key[Array, ""],
    batch: int,
    grids: Grids,
    visible: Mapping[str, int],
    has_data: HasData = None,
    *,
    drop: float = 0.5,
) -> dict[str, Mask]:
    """Like `independent`, but with probability `drop` an example hides one modality, drawn at random, altogether."""
    names = sorted(grids)
    noise = _noise(key, batch, grids)
    dropped = jax.random.randint(jax.random.fold_in(key, len(names)), (batch,), 0, len(names))
    happens = jax.random.bernoulli(jax.random.fold_in(key, len(names) + 1), drop, (batch,)) & (len(names) > 1)
    return {
        name: _split_by_share(
            noise[name], visible[name], jnp.where(happens & (dropped == i), 0, visible[name]), _of(has_data, name)
        )
        for i, name in enumerate(names)
    }


STRATEGIES: dict[str, Callable[..., dict[str, Mask]]] = {
    "independent": independent,
    "consistent": consistent,
    "complementary": complementary,
    "dirichlet": dirichlet,
    "block": block,
    "modality_drop": modality_drop,
}
_OPTIONS = {"dirichlet": ("alpha", 0.0, np.inf), "block": ("block_size", 0, np.inf), "modality_drop": ("drop", 0, 1)}


def strategy(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., dict[str, Mask]]:
    """The masking strategy called `name`; of `options` it takes its own (alpha, block_size, drop).

    Raises:
      InputError: there is none of that name, or its option is out of range.
    """
    if name not in STRATEGIES:
        raise InputError(f"masking is {name!r}; it must be one of {', '.join(sorted(STRATEGIES))}.")
    key, low, high = _OPTIONS.get(name, (None, 0, 0))
    if key is None or not options or key not in options:
        return STRATEGIES[name]
    if not low < options[key] <= high:
        raise InputError(f"masking_options.{key} is {options[key]}; it must lie above {low} and at most at {high}.")
    return functools.partial(STRATEGIES[name], **{key: options[key]})
