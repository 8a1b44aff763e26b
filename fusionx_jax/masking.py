"""Which patches are visible: pure functions of (key, shape).

Independent masking draws each sensor's visible patches on its own; consistent masking shows the same places in all
(Fus-MAE, arXiv 2401.02764, section 3). Every example has its own draw. The number of visible patches is static, so
shapes are; where too few patches carry data, the surplus slots are marked invalid and no one attends to them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fusionx_jax.contract import InputError


class Mask(NamedTuple):
    """Visible and hidden patches of one modality, by position in the row-major patch grid.

    visible [B, V] and hidden [B, N - V] partition the grid. `visible_ok` [B, V] is False where a slot holds a patch
    without data (None: all hold data).
    """

    visible: Int[Array, "batch visible"]
    hidden: Int[Array, "batch hidden"]
    visible_ok: Bool[Array, "batch visible"] | None


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
    if has_data is not None:
        noise = jnp.where(has_data, noise, jnp.inf)
    order = jnp.argsort(noise, axis=1)
    shown = order[:, :visible]
    ok = None if has_data is None else jnp.take_along_axis(has_data, shown, axis=1)
    return Mask(shown, order[:, visible:], ok)


def independent(
    key: Key[Array, ""],
    batch: int,
    num_patches: Mapping[str, int],
    visible: Mapping[str, int],
    has_data: Mapping[str, Bool[Array, "batch _patches"]] | None = None,
) -> dict[str, Mask]:
    """Each modality its own patches. `has_data` marks patches with at least one valid pixel."""
    masks = {}
    for i, name in enumerate(sorted(num_patches)):
        noise = jax.random.uniform(jax.random.fold_in(key, i), (batch, num_patches[name]))
        masks[name] = _split(noise, visible[name], None if has_data is None else has_data[name])
    return masks


def consistent(
    key: Key[Array, ""],
    batch: int,
    num_patches: Mapping[str, int],
    visible: Mapping[str, int],
    has_data: Mapping[str, Bool[Array, "batch _patches"]] | None = None,
) -> dict[str, Mask]:
    """The same patches in every modality; a place counts as having data if some modality has it there.

    Raises:
      InputError: grids or ratios differ between modalities, so that "the same patches" has no meaning.
    """
    if len(set(num_patches.values())) > 1 or len(set(visible.values())) > 1:
        raise InputError(
            f"Consistent masking shows the same patches in all modalities, but their grids are {dict(num_patches)} and "
            f"their visible counts {dict(visible)}; give equal mask_ratio and patch_size, or use masking='independent'."
        )
    noise = jax.random.uniform(key, (batch, next(iter(num_patches.values()))))
    count = next(iter(visible.values()))
    if has_data is None:
        return dict.fromkeys(num_patches, _split(noise, count, None))
    somewhere = jnp.stack(list(has_data.values())).any(0)
    shared = _split(noise, count, somewhere)
    return {
        name: shared._replace(visible_ok=jnp.take_along_axis(has_data[name], shared.visible, axis=1))
        for name in num_patches
    }


STRATEGIES: dict[str, Callable[..., dict[str, Mask]]] = {"independent": independent, "consistent": consistent}


def strategy(name: str) -> Callable[..., dict[str, Mask]]:
    """The masking strategy called `name`.

    Raises:
      InputError: there is none of that name.
    """
    if name not in STRATEGIES:
        raise InputError(f"masking is {name!r}; it must be one of {', '.join(sorted(STRATEGIES))}.")
    return STRATEGIES[name]
