"""On the device, inside the jitted step: wire uint16 to standardized float, flips, crops, padding.

Statistics are fixed numbers from a contract, never those of a batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt16

from fusionx_jax.contract import ModalityContract
from fusionx_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """`standard = (wire[..., order] * scale + offset - mean) / std`, with zero where there is no data.

    Attributes (per modality): positions of the weights' bands in the data, the folded affine map `gain`, `shift`, the
    no-data code and the wire's (scale, offset). `masked` says whether tiles may hold pixels without data.
    """

    order: Mapping[str, tuple[int, ...]]
    gain: Mapping[str, np.ndarray]
    shift: Mapping[str, np.ndarray]
    nodata: Mapping[str, int]
    wire: Mapping[str, tuple[float, float]]
    masked: bool

    def __call__(
        self, wire: Mapping[str, UInt16[Array, "batch _height _width _channels"]]
    ) -> tuple[dict[str, Float[Array, "..."]], dict[str, Bool[Array, "batch _height _width"]] | None]:
        """Standardized images by modality and, if tiles may miss pixels, which pixels are valid."""
        images, valid = {}, {}
        for name, tile in wire.items():
            if name not in self.order:
                continue
            order = self.order[name]
            picked = tile if order == tuple(range(tile.shape[-1])) else tile[..., jnp.array(order)]
            image = picked.astype(jnp.float32) * self.gain[name] + self.shift[name]
            if self.masked:
                valid[name] = (picked != self.nodata[name]).all(-1)
                image = jnp.where(valid[name][..., None], image, 0.0)
            images[name] = image
        return images, (valid if self.masked else None)

    def undo(self, name: str, image: np.ndarray) -> np.ndarray:
        """Standardized [..., C] in the weights' band order to physical units, through the wire scale."""
        return (image - self.shift[name]) / self.gain[name] * self.wire[name][0] + self.wire[name][1]


_HASH_FACTORS = (2654435761, 2246822519)  # odd: a change of one value always changes the sum modulo 2^32


def same_tiles(wire: Mapping[str, UInt16[Array, "batch _height _width _channels"]]) -> Bool[Array, "batch batch"]:
    """Which tiles of a batch hold the same values: a batch may draw a tile twice, or a set hold it twice.

    Two 32-bit hashes of each tile are compared.
    """
    hashes = []
    for name in sorted(wire):
        values = wire[name].reshape(len(wire[name]), -1).astype(jnp.uint32)
        for factor in _HASH_FACTORS:
            weights = jax.lax.iota(jnp.uint32, values.shape[1]) * jnp.uint32(factor) | jnp.uint32(1)
            hashes.append((values * weights).sum(1, dtype=jnp.uint32))
    table = jnp.stack(hashes, axis=1)
    return (table[:, None] == table[None]).all(-1)


def make_normalizer(
    data: Mapping[str, ModalityContract],
    weights: Mapping[str, ModalityContract],
    side: int = 0,
    patch_size: int = 1,
) -> Normalizer:
    """Normalizer for `data` with the statistics and band order of `weights` (the same mapping when training anew).

    `side` (a crop's, 0 for whole tiles) and `patch_size` tell whether tiles will be padded with no-data pixels.
    """
    names = [n for n in weights if n in data]
    order, gain, shift, nodata, wire = {}, {}, {}, {}, {}
    for name in names:
        d, w = data[name], weights[name]
        order[name] = tuple(d.bands.index(b) for b in w.bands)
        mean, std = np.array(w.mean), np.array(w.std)
        gain[name] = (d.scale / std).astype(np.float32)
        shift[name] = ((d.offset - mean) / std).astype(np.float32)
        nodata[name] = d.nodata
        wire[name] = (d.scale, d.offset)
    padded = any((side or s) % patch_size for n in names for s in (data[n].height, data[n].width))
    masked = padded or any(data[n].nodata_fraction > 0 for n in names)
    return Normalizer(order, gain, shift, nodata, wire, masked)


def augment(
    key: Key[Array, ""],
    wire: Mapping[str, Array],
    crop: int,
    flip: bool,
) -> dict[str, Array]:
    """One random crop of side `crop` (0: none) and one of the square's eight symmetries, per example.

    All modalities of an example, and pixel labels among them, move together.
    """
    first = next(iter(wire.values()))
    batch, height, width = first.shape[:3]
    crop_key, flip_key = jax.random.split(key)
    out = dict(wire)
    if crop and (crop < height or crop < width):
        tops = jax.random.randint(jax.random.fold_in(crop_key, 0), (batch,), 0, height - crop + 1)
        lefts = jax.random.randint(jax.random.fold_in(crop_key, 1), (batch,), 0, width - crop + 1)

        def cut(image: Array, top: Array, left: Array) -> Array:
            return jax.lax.dynamic_slice(image, (top, left, 0), (crop, crop, image.shape[-1]))

        out = {name: jax.vmap(cut)(image, tops, lefts) for name, image in out.items()}
    if flip:
        bits = jax.random.bernoulli(flip_key, 0.5, (3, batch, 1, 1, 1))
        for name, image in out.items():
            image = jnp.where(bits[0], image[:, ::-1], image)
            image = jnp.where(bits[1], image[:, :, ::-1], image)
            if image.shape[1] == image.shape[2]:
                image = jnp.where(bits[2], image.swapaxes(1, 2), image)
            out[name] = image
    return out


def random_views(
    key: Key[Array, ""],
    images: Mapping[str, Float[Array, "batch _height _width _channels"]],
    valid: Mapping[str, Bool[Array, "batch _height _width"]] | None,
    *,
    least_area: float,
    gain: float,
    noise: float,
) -> tuple[dict[str, Float[Array, "..."]], dict[str, Bool[Array, "batch _height _width"]] | None]:
    """Each sensor's own random view of each tile, to be contrasted (after SimCLR, arXiv 2002.05709, appendix A).

    A crop of `least_area` to all of the tile resized to its size, one of the square's eight symmetries, every band
    multiplied by 1 +- `gain` and shifted by +- `gain`, and Gaussian noise of deviation `noise`, in standardized units.
    """
    out, seen = {}, {}
    for i, name in enumerate(sorted(images)):
        image = images[name]
        batch, height, width, channels = image.shape
        keys = jax.random.split(jax.random.fold_in(key, i), 6)
        side = jnp.sqrt(jax.random.uniform(keys[0], (batch,), minval=least_area))
        corner = jax.random.uniform(keys[1], (batch, 2)) * (1 - side)[:, None] * jnp.array([height, width])

        def cut(picture: Array, side: Array, corner: Array) -> Array:
            return jax.image.scale_and_translate(
                picture, picture.shape, (0, 1), jnp.broadcast_to(1 / side, (2,)), -corner / side, "linear",
                antialias=False,
            )  # fmt: skip

        parts = {"image": jax.vmap(cut)(image, side, corner)}
        if valid is not None:
            parts["valid"] = jax.vmap(cut)(valid[name][..., None].astype(jnp.float32), side, corner)
        parts = augment(keys[2], parts, 0, True)
        factor = jax.random.uniform(keys[3], (batch, 1, 1, channels), minval=1 - gain, maxval=1 + gain)
        shift = jax.random.uniform(keys[4], (batch, 1, 1, channels), minval=-gain, maxval=gain)
        view = parts["image"] * factor + shift + noise * jax.random.normal(keys[5], image.shape)
        if valid is not None:
            seen[name] = parts["valid"][..., 0] > 0.5
            view = jnp.where(seen[name][..., None], view, 0.0)
        out[name] = view
    return out, (seen if valid is not None else None)


def pad_to_multiple(wire: Mapping[str, Array], patch_size: int, nodata: Mapping[str, int]) -> dict[str, Array]:
    """Pads bottom and right with the no-data code up to a multiple of the patch."""
    out = {}
    for name, image in wire.items():
        bottom, right = -image.shape[1] % patch_size, -image.shape[2] % patch_size
        out[name] = (
            jnp.pad(image, ((0, 0), (0, bottom), (0, right), (0, 0)), constant_values=nodata[name])
            if bottom or right
            else image
        )
    return out


def patch_has_data(
    valid: Mapping[str, Bool[Array, "batch _height _width"]], patch_size: int
) -> dict[str, Bool[Array, "batch _patches"]]:
    """Patches with at least one valid pixel."""
    out = {}
    for name, v in valid.items():
        b, h, w = v.shape
        p = patch_size
        out[name] = v.reshape(b, h // p, p, w // p, p).any((2, 4)).reshape(b, -1)
    return out


def check_patch(sides: Sequence[int], patch_size: int, where: str) -> None:
    """Refuses a patch larger than the tile."""
    if patch_size < 1 or patch_size > min(sides):
        raise InputError(f"patch_size is {patch_size}, but {where} has tiles of {sides[0]} x {sides[1]} pixels.")
