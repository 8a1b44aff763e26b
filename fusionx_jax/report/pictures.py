"""Pictures of tiles: reconstructions of masked patches, and each modality predicted from the others."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt16
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, losses, masking, modalities, preprocess
from fusionx_jax import config as config_lib
from fusionx_jax.contract import ModalityContract
from fusionx_jax.models import build, layers
from fusionx_jax.models.network import Network
from fusionx_jax.prepared import order, sets
from fusionx_jax.report import look
from fusionx_jax.training.objective import MaskedModel

_NUM_TILES = 5
_MASKED_GRAY, _EMPTY_GRAY = 0.82, 0.5


class Trained(NamedTuple):
    """A pretrained network with its weights, and a prepared set normalized by the weights' statistics."""

    config: ConfigDict
    saved: checkpoint.Saved
    prepared: sets.Readable
    model: Network
    params: PyTree
    normalizer: preprocess.Normalizer

    @property
    def modalities(self) -> dict[str, ModalityContract]:
        """The modalities of the weights; those with most bands first, which are the easiest to read."""
        weights = {m: self.saved.contract.modalities[m] for m in self.config.modalities}
        return dict(sorted(weights.items(), key=lambda item: -len(item[1].bands)))

    @property
    def patch_size(self) -> int:
        return int(self.config.model.patch_size)


def load_network(workdir: str, dataset: str) -> Trained | None:
    """The network of a workdir's newest checkpoint.

    None where it reconstructs nothing, or the data set lacks one of its modalities: there are no pictures to draw.
    """
    saved = checkpoint.find(workdir)
    config = config_lib.from_json(saved.config)
    prepared = sets.open_for(config, dataset)
    if not build.traits(config).reconstructs or not set(config.modalities) <= set(prepared.contract.modalities):
        return None
    model = build.make_model(config, saved.contract.modalities)
    params = checkpoint.load_params(saved, jax.eval_shape(lambda: build.init_params(model, jax.random.key(0))))
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    normalizer = preprocess.make_normalizer(prepared.contract.modalities, weights, patch_size=config.model.patch_size)
    return Trained(config, saved, prepared, model, params, normalizer)


class _Tiles(NamedTuple):
    split: str
    wire: dict[str, UInt16[np.ndarray, "tiles _height _width _channels"]]

    @property
    def number(self) -> int:
        return len(next(iter(self.wire.values())))


def _read_tiles(network: Trained, number: int) -> _Tiles:
    """Tiles spread over the test split; over the training split of a set without one."""
    prepared = network.prepared
    split = "test" if prepared.contract.splits.get("test") else "train"
    index = order.spread(prepared.size(split), number)
    return _Tiles(split, prepared.read(split, index, list(network.modalities)))


def reconstructions(network: Trained, directory: str, number: int = _NUM_TILES) -> str:
    """Test tiles of every modality: true, masked, reconstructed (masked patches predicted, visible ones kept).

    With a normalized target each masked patch takes its mean and contrast from the true one; with "raw" or "both" it
    takes nothing from it.
    """
    tiles = _read_tiles(network, number)
    config, ratios = network.config, config_lib.mask_ratios(network.config)
    mask = masking.strategy(config.masking, config.masking_options.to_dict())
    masked = MaskedModel(network.model, network.normalizer, mask, ratios, views=None)
    forward = jax.jit(lambda params, wire: masked.forward(params, wire, jax.random.key(0)))
    output, masks, patches, valid = forward(network.params, tiles.wire)
    columns: dict[str, np.ndarray] = {}
    for name, m in network.modalities.items():
        has_data = None if valid is None else valid[name]
        true, hidden = np.asarray(patches[name]), masks[name]
        rebuilt, is_masked = _fill_masked(network, output.predicted[name], true, hidden, has_data)
        shape = tiles.wire[name].shape[1:3]
        images = [_compose(network, name, content, shape, has_data) for content in (true, rebuilt)]
        covered = _to_image(np.repeat(is_masked, network.patch_size**2, axis=2), network.patch_size, shape)[..., :1]
        composite = m.composites()[0].name if m.composites() else "first bands"
        columns[f"{name} ({composite})\ntrue"] = images[0]
        columns[f"{name}\nmasked"] = np.where(covered, _MASKED_GRAY, images[0])
        columns[f"{name}\nreconstructed"] = images[1]
    shares = ", ".join(f"{name} {100 * ratios[name]:.0f} %" for name in network.modalities)
    contract = network.prepared.contract
    title = f"{contract.title}, {tiles.split} split; {config.masking} masking: {shares}"
    return _grid(columns, title, directory, "reconstructions")


def _fill_masked(
    network: Trained,
    predicted: Float[Array, "tiles masked outputs"],
    true: Float[np.ndarray, "tiles patches pixels"],
    mask: masking.Mask,
    has_data: Bool[Array, "tiles patches pixels"] | None,
) -> tuple[Float[np.ndarray, "tiles patches pixels"], Bool[np.ndarray, "tiles patches 1"]]:
    """Patches with the predicted ones in place of the masked ones, and which are masked."""
    at = np.asarray(mask.hidden)[..., None]
    target = np.take_along_axis(true, at, axis=1)
    has = None if has_data is None else jnp.take_along_axis(has_data, at, axis=1)
    pixels = np.asarray(losses.undo_normalization(predicted, jnp.asarray(target), network.model.config.target, has))
    counts = np.ones(at.shape, bool) if mask.hidden_ok is None else np.asarray(mask.hidden_ok)[..., None]
    is_masked, rebuilt = np.zeros((*true.shape[:2], 1), bool), true.copy()
    np.put_along_axis(is_masked, at, counts, axis=1)
    np.put_along_axis(rebuilt, at, np.where(counts, pixels, target), axis=1)
    return rebuilt, is_masked


def cross_predictions(network: Trained, directory: str, number: int = _NUM_TILES) -> str | None:
    """Each modality predicted from all patches of the others; None for one modality, or targets without levels."""
    names = list(network.modalities)
    if network.model.config.target == "normalized" or len(names) < 2:
        return None
    tiles = _read_tiles(network, number)
    patches, predicted = jax.jit(lambda params, wire: _predict_each(network, params, wire))(network.params, tiles.wire)
    columns = {}
    for name in names:
        shape = tiles.wire[name].shape[1:3]
        others = " + ".join(n for n in names if n != name)
        columns[f"{name}, true"] = _compose(network, name, np.asarray(patches[name]), shape, None)
        columns[f"{name} from {others}"] = _compose(network, name, np.asarray(predicted[name]), shape, None)
    contract = network.prepared.contract
    title = f"{contract.title}, {tiles.split} split: each modality predicted from the others"
    return _grid(columns, title, directory, "cross_predictions")


def _predict_each(
    network: Trained, params: PyTree, wire: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Patches of every modality, and as they are predicted from all patches of the others."""
    normalizer, p = network.normalizer, network.patch_size
    images, _ = normalizer(preprocess.pad_to_multiple(wire, p, normalizer.nodata))
    patches = {n: layers.patchify(x, p) for n, x in images.items()}
    every = {n: jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]) for n, x in patches.items()}
    none = {n: x[:, :0] for n, x in every.items()}
    predicted = {}
    for name in images:
        others = {n: x for n, x in images.items() if n != name}
        masks = {n: masking.Mask(*((none[n], x) if n == name else (x, none[n])), None) for n, x in every.items()}
        output = network.model.apply({"params": params}, others, masks).predicted[name]
        predicted[name] = losses.undo_normalization(output, patches[name], network.model.config.target)
    return patches, predicted


def _to_image(patches: np.ndarray, patch_size: int, shape: tuple[int, int]) -> np.ndarray:
    """Patches [tiles, patches, pixels] as images, padded to whole patches."""
    height, width = (math.ceil(side / patch_size) * patch_size for side in shape)
    return np.asarray(layers.unpatchify(patches, patch_size, height, width))


def _compose(
    network: Trained, name: str, patches: np.ndarray, shape: tuple[int, int], has_data: Array | None
) -> Float[np.ndarray, "tiles height width 3"]:
    """Standardized patches as color images; pixels without data are gray."""
    m = network.modalities[name]
    physical = np.asarray(network.normalizer.undo(name, _to_image(patches, network.patch_size, shape)))
    colors = modalities.compose(physical, m.bands, m.composites())
    if has_data is None:
        return colors
    empty = np.asarray(~_to_image(np.asarray(has_data), network.patch_size, shape).all(-1))
    return np.where(empty[..., None], _EMPTY_GRAY, colors)


def _grid(columns: Mapping[str, np.ndarray], title: str, directory: str, name: str) -> str:
    """A figure with one row a tile, and one titled column for each array of images."""
    number = len(next(iter(columns.values())))
    plt = look.pyplot()
    figure, axes = plt.subplots(number, len(columns), figsize=(1.6 * len(columns), 1.6 * number + 0.5), squeeze=False)
    for column, (heading, images) in zip(axes.T, columns.items()):
        column[0].set_title(heading, fontsize=8)
        for axis, image in zip(column, images):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return look.save(figure, directory, name)
