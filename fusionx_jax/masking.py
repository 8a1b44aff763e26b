"""Which patches are visible: pure functions of (key, shape). One small class per masking, registered by name.

Independent masking draws the visible patches of each modality on its own; consistent masking shows the same positions
in all (Fus-MAE, arXiv 2401.02764, section 3). The others are those of neighboring methods: a token budget shared by
Dirichlet shares (MultiMAE, arXiv 2204.01678, section 3.2), complementary masks, blocks (BEiT, arXiv 2106.08254, section
2.3) and dropped modalities (DINO-MM, arXiv 2204.05381, section 2.2). Groups of bands that are masked separately are
modalities of their own (`band_groups` in the config), so every masking applies to them too.

Every example has a draw of its own. The number of visible slots is static, so shapes are; a slot without a visible
patch (the patch has no data, or the example's share is smaller) is marked invalid and not attended to.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fusionx_jax.errors import InputError
from fusionx_jax.registry import Registry

Grids = Mapping[str, tuple[int, int]]
"""Rows and columns of each modality's patches."""
HasData = Mapping[str, Bool[Array, "batch _patches"]] | None
"""Patches with at least one valid pixel; None: all."""


class Mask(NamedTuple):
    """Visible and hidden patches of one modality, as indices into the row-major patch grid.

    Attributes:
      visible: patches that the encoder reads.
      hidden: patches that the loss is computed on. A patch is in at most one of the two.
      visible_ok, hidden_ok: False where a slot does not count. None: all count.
    """

    visible: Int[Array, "batch visible"]
    hidden: Int[Array, "batch hidden"]
    visible_ok: Bool[Array, "batch visible"] | None
    hidden_ok: Bool[Array, "batch hidden"] | None = None


@runtime_checkable
class Masking(Protocol):
    """A way to draw masks. An implementation is a frozen dataclass whose fields are its options."""

    def __call__(
        self,
        key: Key[Array, ""],
        batch: int,
        grids: Grids,
        visible: Mapping[str, int],
        has_data: HasData = None,
    ) -> dict[str, Mask]:
        """Masks of a batch, by modality. `visible` is the number of visible slots of each modality."""
        ...


MASKINGS: Registry[type[Masking]] = Registry("masking")


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Number of visible patches for a mask ratio: at least one visible and one hidden.

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


def strategy(name: str, options: Mapping[str, Mapping[str, object]] | None = None) -> Masking:
    """The masking `name` with its options, `options[name]`.

    Args:
      options: `config.masking_options`: the options of every masking that has any, by its name.

    Raises:
      InputError: `name` or a key of `options` is not registered, an option is unknown, missing or out of range.
    """
    masking = MASKINGS[name]
    for other in options or {}:
        MASKINGS[other]
    given = dict((options or {}).get(name, {}))
    known = [f.name for f in dataclasses.fields(masking)]  # type: ignore[arg-type]  # every masking is a dataclass
    unknown, missing = [k for k in given if k not in known], [k for k in known if k not in given]
    if unknown:
        raise InputError(
            f"masking_options.{name} has the option {', '.join(unknown)}, but masking {name!r} has "
            f"{', '.join(known) or 'no options'}."
        )
    if missing:
        raise InputError(f"masking_options.{name} lacks {', '.join(missing)}, which masking {name!r} needs.")
    return masking(**given)


def check_range(option: str, value: float | int, low: float | int, high: float | int = math.inf) -> None:
    """Refuses the option `option` ("NAME.OPTION") outside (`low`, `high`].

    Raises:
      InputError: it is outside.
    """
    if not low < value <= high:
        upper = "" if math.isinf(high) else f" and at most {high}"
        raise InputError(f"masking_options.{option} is {value}; it must be greater than {low}{upper}.")


@dataclasses.dataclass(frozen=True)
class Independent:
    """The visible patches of each modality are drawn on their own."""

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`."""
        noise = _noise(key, batch, grids)
        return {name: _split(noise[name], visible[name], _by_modality(has_data, name)) for name in grids}


@dataclasses.dataclass(frozen=True)
class Consistent:
    """The same patches are visible in every modality. A position has data if any modality has data there."""

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`.

        Raises:
          InputError: grids or mask ratios differ between modalities.
        """
        if len(set(grids.values())) > 1 or len(set(visible.values())) > 1:
            raise InputError(
                f"masking='consistent' shows the same patches in all modalities, but their grids are {dict(grids)} and "
                f"their visible patches {dict(visible)}; set equal mask_ratio, or masking='independent'."
            )
        noise = jax.random.uniform(key, (batch, _size(next(iter(grids.values())))))
        count = next(iter(visible.values()))
        if has_data is None:
            return dict.fromkeys(grids, _split(noise, count, None))
        shared = _split(noise, count, jnp.stack(list(has_data.values())).any(0))
        return {
            name: shared._replace(visible_ok=jnp.take_along_axis(has_data[name], shared.visible, axis=1))
            for name in grids
        }


@dataclasses.dataclass(frozen=True)
class Complementary:
    """No position is visible in two modalities. With two modalities and half of the patches hidden, each shows exactly
    what the other hides."""

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`.

        Raises:
          InputError: grids differ, or more patches are to be visible than there are positions.
        """
        if len(set(grids.values())) > 1 or sum(visible.values()) > _size(next(iter(grids.values()))):
            raise InputError(
                f"masking='complementary' shows each position in one modality at most, but the grids are {dict(grids)} "
                f"and the visible patches {dict(visible)}; set a higher mask_ratio, or masking='independent'."
            )
        order = jnp.argsort(jax.random.uniform(key, (batch, _size(next(iter(grids.values()))))), axis=1)
        masks, start = {}, 0
        for name in sorted(grids):
            rolled = jnp.roll(order, -start, axis=1)  # this modality's positions first, those of the others after
            shown, data = rolled[:, : visible[name]], _by_modality(has_data, name)
            ok = None if data is None else jnp.take_along_axis(data, shown, axis=1)
            masks[name] = Mask(shown, rolled[:, visible[name] :], ok)
            start += visible[name]
        return masks


@dataclasses.dataclass(frozen=True)
class Dirichlet:
    """The visible patches of all modalities form one budget, which a symmetric Dirichlet draw of concentration `alpha`
    shares among the modalities of each example.

    Shapes are static: every modality has slots for the whole budget (at most its grid less one patch), and `visible_ok`
    marks those that count.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_range("dirichlet.alpha", self.alpha, 0)

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`."""
        names = sorted(grids)
        budget = sum(visible.values())
        alphas = jnp.full(len(names), self.alpha)
        share = jax.random.dirichlet(jax.random.fold_in(key, len(names)), alphas, (batch,))
        edges = jnp.round(jnp.cumsum(share, axis=1) * budget).astype(jnp.int32)
        counts = jnp.diff(edges.at[:, -1].set(budget), prepend=0, axis=1)
        noise = _noise(key, batch, grids)
        masks = {}
        for i, name in enumerate(names):
            most = _size(grids[name]) - 1
            shown = counts[:, i].clip(0, most)
            masks[name] = _split_by_share(noise[name], min(budget, most), shown, _by_modality(has_data, name))
        return masks


@dataclasses.dataclass(frozen=True)
class Block:
    """As `Independent`, but squares of `block_size` x `block_size` patches are visible or hidden as a whole.

    The last square is visible in part, so that the number of visible patches is exact.
    """

    block_size: int

    def __post_init__(self) -> None:
        check_range("block.block_size", self.block_size, 0)

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`."""
        side = self.block_size
        masks = {}
        for i, name in enumerate(sorted(grids)):
            rows, columns = grids[name]
            squares = (batch, -(-rows // side), -(-columns // side))
            noise = jax.random.uniform(jax.random.fold_in(key, i), squares)
            noise = jnp.repeat(jnp.repeat(noise, side, 1), side, 2)[:, :rows, :columns]
            masks[name] = _split(noise.reshape(batch, -1), visible[name], _by_modality(has_data, name))
        return masks


@dataclasses.dataclass(frozen=True)
class ModalityDrop:
    """As `Independent`, but with probability `drop` an example hides one modality, drawn at random, altogether."""

    drop: float

    def __post_init__(self) -> None:
        check_range("modality_drop.drop", self.drop, 0, 1)

    def __call__(
        self, key: Key[Array, ""], batch: int, grids: Grids, visible: Mapping[str, int], has_data: HasData = None
    ) -> dict[str, Mask]:
        """See `Masking`."""
        names = sorted(grids)
        noise = _noise(key, batch, grids)
        dropped = jax.random.randint(jax.random.fold_in(key, len(names)), (batch,), 0, len(names))
        drops = jax.random.bernoulli(jax.random.fold_in(key, len(names) + 1), self.drop, (batch,)) & (len(names) > 1)
        masks = {}
        for i, name in enumerate(names):
            shown = jnp.where(drops & (dropped == i), 0, visible[name])
            masks[name] = _split_by_share(noise[name], visible[name], shown, _by_modality(has_data, name))
        return masks


def _split(noise: Float[Array, "batch patches"], visible: int, has_data: Bool[Array, "batch patches"] | None) -> Mask:
    """The `visible` patches of least noise are visible; patches without data come last."""
    order = _ranked(noise, has_data)
    shown = order[:, :visible]
    ok = None if has_data is None else jnp.take_along_axis(has_data, shown, axis=1)
    return Mask(shown, order[:, visible:], ok)


def _ranked(
    noise: Float[Array, "batch patches"], has_data: Bool[Array, "batch patches"] | None
) -> Int[Array, "batch patches"]:
    return jnp.argsort(noise if has_data is None else jnp.where(has_data, noise, jnp.inf), axis=1)


def _split_by_share(
    noise: Float[Array, "batch patches"],
    slots: int,
    shown: Int[Array, "batch"],
    has_data: Bool[Array, "batch patches"] | None,
) -> Mask:
    """The `shown` patches of least noise are visible, at most `slots`; the number differs between examples."""
    order = _ranked(noise, has_data)
    counts = jnp.arange(order.shape[1])[None] < shown[:, None]
    ok = counts[:, :slots]
    if has_data is not None:
        ok &= jnp.take_along_axis(has_data, order[:, :slots], axis=1)
    return Mask(order[:, :slots], order, ok, ~counts)


def _size(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


def _noise(key: Key[Array, ""], batch: int, grids: Grids) -> dict[str, Float[Array, "batch _patches"]]:
    return {
        name: jax.random.uniform(jax.random.fold_in(key, i), (batch, _size(grids[name])))
        for i, name in enumerate(sorted(grids))
    }


def _by_modality(has_data: HasData, name: str) -> Bool[Array, "batch _patches"] | None:
    return None if has_data is None else has_data[name]


MASKINGS.register("independent", Independent)
MASKINGS.register("consistent", Consistent)
MASKINGS.register("complementary", Complementary)
MASKINGS.register("dirichlet", Dirichlet)
MASKINGS.register("block", Block)
MASKINGS.register("modality_drop", ModalityDrop)
