"""From a configuration and a contract to a network."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import masking
from fusionx_jax.contract import ModalityContract
from fusionx_jax.errors import InputError
from fusionx_jax.models import fusionx, layers, network, peers
from fusionx_jax.models.network import Network, Traits
from fusionx_jax.registry import Registry

NETWORKS: Registry[type[Network]] = Registry("network (model.family)")
NETWORKS.register("fusionx", fusionx.FusionX)
NETWORKS.register("stacked", peers.StackedMAE)
NETWORKS.register("croma", peers.Croma)
NETWORKS.register("separate", peers.SeparateMAE)
NETWORKS.register("contrastive", peers.Contrastive)
NETWORKS.register("resnet", peers.ResNet)

_SIZE_FIELDS = tuple(f.name for f in dataclasses.fields(network.Size))


def traits(config: ConfigDict) -> Traits:
    """Traits of the network that `config.model.family` names.

    Raises:
      InputError: no network of that name is registered.
    """
    return NETWORKS[config.model.family].traits


def make_model(config: ConfigDict, data: Mapping[str, ModalityContract]) -> Network:
    """The network that `config.model` describes for the bands of `data`.

    Raises:
      InputError: a modality is not in the data, or a value of `config.model` does not exist or does not fit the others.
    """
    missing = [m for m in config.modalities if m not in data]
    if missing:
        raise InputError(
            f"The config lists the modality {', '.join(missing)}, but the data set has {', '.join(data)}; set "
            "--config.modalities or choose another data set."
        )
    check_traits(config)
    model = config.model
    if model.size not in network.SIZES:
        raise InputError(f"model.size is {model.size!r}; it must be one of {', '.join(network.SIZES)}.")
    if not 0 <= model.own_share <= 1:
        raise InputError(f"model.own_share is {model.own_share}; it must lie between 0 and 1.")
    size = dataclasses.replace(network.SIZES[model.size], **{k: model[k] for k in _SIZE_FIELDS if k in model})
    family = NETWORKS[model.family]
    fields = {f.name for f in dataclasses.fields(family.config_class)}
    derived = {
        "channels": tuple((m, len(data[m].bands)) for m in config.modalities),
        "size": size,
        "target": config.target,
        "own_depth": int(size.depth * model.own_share),
        "contrast_views": contrasts_views(config),
    }
    return family(  # type: ignore[call-arg]  # a Flax module: its field `config` makes the constructor
        family.config_class(**{**{k: v for k, v in model.items() if k in fields}, **derived})
    )


def contrasts_views(config: ConfigDict) -> bool:
    """Whether two views of every tile are contrasted."""
    return "contrast" in config and config.contrast.get("views", 0.0) > 0


def view_projector(config: network.NetworkConfig) -> layers.Projector:
    """What maps the joint tokens of a view to its embedding; its parameters are "views" beside the network's."""
    return layers.Projector(config.size.width, jnp.dtype(config.dtype))


def check_traits(config: ConfigDict) -> None:
    """Refuses a config that its network cannot run.

    Raises:
      InputError: unequal masks, too few modalities, or pretraining steps for a network without an objective.
    """
    needs = traits(config)
    family = config.model.family
    if needs.equal_masks and config.masking != "consistent":
        raise InputError(
            f"model.family {family!r} needs one mask for all modalities, but masking is {config.masking!r}; set "
            "--config.masking=consistent."
        )
    if len(config.modalities) < needs.min_modalities:
        raise InputError(
            f"model.family {family!r} needs at least {needs.min_modalities} modalities, but the config lists "
            f"{len(config.modalities)} ({', '.join(config.modalities)})."
        )


@functools.partial(jax.jit, static_argnames=("model", "side"))  # op by op it takes three times as long
def init_params(model: Network, key: jax.Array, side: int | None = None) -> PyTree:
    """Fresh parameters; a pure function of the key. `side` is a tile side in pixels (any multiple of the patch)."""
    p = model.config.patch_size
    side = side or 2 * p
    images = {name: jnp.zeros((1, side, side, c)) for name, c in model.config.channels}
    grid = (side // p, side // p)
    masks = masking.Consistent()(
        jax.random.key(0), 1, dict.fromkeys(images, grid), dict.fromkeys(images, max(1, grid[0] ** 2 // 2))
    )
    params = model.init(key, images, masks)["params"]
    if model.config.contrast_views:
        pooled = jnp.zeros((1, model.config.size.width))
        params = {**params, "views": view_projector(model.config).init(jax.random.fold_in(key, 1), pooled)["params"]}
    return params
