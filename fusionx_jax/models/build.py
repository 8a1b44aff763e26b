"""From a configuration and a contract to a network."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fusionx_jax import masking
from fusionx_jax.contract import ModalityContract
from fusionx_jax.errors import InputError
from fusionx_jax.models import baselines, fusionx

_SIZE_FIELDS = tuple(f.name for f in dataclasses.fields(fusionx.Size))


FAMILIES = {
    "fusionx": fusionx.FusionX,
    "stacked": baselines.StackedMAE,
    "croma": baselines.Croma,
    "contrastive": baselines.Contrastive,
    "resnet": baselines.ResNet,
}
# Families that see stacked channels: an absent sensor can only be filled with zeros.
ZERO_FILLED = ("stacked", "resnet")


def family(config: ConfigDict) -> str:
    """The structure of the network; checkpoints from before there were several are "fusionx"."""
    return config.model.get("family", "fusionx")


def reconstructs(config: ConfigDict) -> bool:
    """Whether the network predicts pixels."""
    return family(config) in ("fusionx", "stacked", "croma")


def make_model(config: ConfigDict, data: Mapping[str, ModalityContract]) -> Any:
    """The network `config.model` describes for the bands of `data`.

    Raises:
      InputError: a modality is not in the data, or a model key has a value that does not exist.
    """
    missing = [m for m in config.modalities if m not in data]
    if missing:
        raise InputError(
            f"The config asks for the modality {', '.join(missing)}, but the data set has {', '.join(data)}; set "
            "--config.modalities or choose another data set."
        )
    model = config.model
    if family(config) not in FAMILIES:
        raise InputError(f"model.family is {family(config)!r}; it must be one of {', '.join(FAMILIES)}.")
    if family(config) == "stacked" and config.masking != "consistent":
        raise InputError(f"model.family 'stacked' has one mask for all sensors, but masking is {config.masking!r}.")
    if family(config) in ("croma", "contrastive") and len(config.modalities) < 2:
        raise InputError(f"model.family {family(config)!r} needs two modalities, but the config has one.")
    if model.size not in fusionx.SIZES:
        raise InputError(f"model.size is {model.size!r}; it must be one of {', '.join(fusionx.SIZES)}.")
    if model.dtype not in ("float32", "bfloat16"):
        raise InputError(f"model.dtype is {model.dtype!r}; it must be 'float32' or 'bfloat16'.")
    own_share = model.get("own_share", 0.0)
    if not 0 <= own_share <= 1:
        raise InputError(f"model.own_share is {own_share}; it must lie between 0 and 1.")
    size = dataclasses.replace(fusionx.SIZES[model.size], **{k: model[k] for k in _SIZE_FIELDS if k in model})
    return FAMILIES[family(config)](
        fusionx.FusionXConfig(
            channels=tuple((m, len(data[m].bands)) for m in config.modalities),
            patch_size=model.patch_size,
            size=size,
            cross_attention=model.cross_attention,
            target=config.target,
            dtype=model.dtype,
            decoder_context=model.get("decoder_context", "others"),
            contrastive=model.get("contrastive", False),
            own_depth=int(size.depth * own_share),
            drop_path=model.get("drop_path", 0.0),
            remat=model.get("remat", "none"),
        )
    )


@functools.partial(jax.jit, static_argnames=("model", "side"))  # op by op it takes three times as long
def init_params(model: Any, key: jax.Array, side: int | None = None):
    """Fresh parameters; a pure function of the key. `side` is a tile side in pixels (any multiple of the patch)."""
    p = model.config.patch_size
    side = side or 2 * p
    images = {name: jnp.zeros((1, side, side, c)) for name, c in model.config.channels}
    grid = (side // p, side // p)
    masks = masking.consistent(
        jax.random.key(0), 1, dict.fromkeys(images, grid), dict.fromkeys(images, max(1, grid[0] ** 2 // 2))
    )
    return model.init(key, images, masks)["params"]
