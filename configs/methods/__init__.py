"""One config per method: the keys of a base config that it changes.

Every file takes the name of a base (a file of configs/) as its option, e.g. `configs/methods/croma.py:paper_cpu`; the
default is configs/default.py. Data, steps, batch size, width, depth, target and mask ratio are those of the base, the
same for every method that has them. Cost and result are those of the base, too.
"""

import importlib

from ml_collections import ConfigDict


def start(base: str, method: str) -> ConfigDict:
    """The config of `base` for `method`, with the learning rate that the base lists for it, if any.

    Raises:
      ValueError: there is no such base.
    """
    name = base or "default"
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"There is no base config {name!r} in configs/.") from error
    c = module.get_config()
    c.method = method
    c.optimizer.learning_rate = getattr(module, "LEARNING_RATES", {}).get(method, c.optimizer.learning_rate)
    return c


def plain(base: str, method: str) -> ConfigDict:
    """As `start`, without the additions of FusionX-Net's default to early fusion: blocks per modality before the fusion
    block, InfoNCE, and decoders that attend to all modalities."""
    c = start(base, method)
    c.model.own_share = 0.0
    c.model.contrastive = False
    c.model.decoder_context = "others"
    return c


def single_modality(base: str, method: str, modality: str) -> ConfigDict:
    """As `plain`, with one modality and therefore without cross-attention."""
    c = plain(base, method)
    c.modalities = (modality,)
    c.model.cross_attention = "none"
    return c
