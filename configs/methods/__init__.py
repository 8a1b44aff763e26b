"""One config a method: what it changes of a base config, and nothing else.

Every file takes the name of a base (a file of configs/) as its option, e.g. `configs/methods/croma.py:paper_cpu`;
without one it takes configs/default.py. Data, steps, batch, width, depth, target and mask ratio are the base's, the
same for every method, unless a method has no use for them.
"""

import importlib

from ml_collections import ConfigDict


def start(base: str, method: str) -> ConfigDict:
    """The config of `base` for `method`, with the learning rate that was tuned for it there, if one was.

    Raises:
      ValueError: there is no such base.
    """
    name = base or "default"
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no base config {name!r} in configs/") from error
    c = module.get_config()
    c.method = method
    c.optimizer.learning_rate = getattr(module, "LEARNING_RATES", {}).get(method, c.optimizer.learning_rate)
    return c


def plain(base: str, method: str) -> ConfigDict:
    """As `start`, without what FusionX-Net's default adds to a joint encoder: own blocks, InfoNCE, the wide context."""
    c = start(base, method)
    c.model.own_share = 0.0
    c.model.contrastive = False
    c.model.decoder_context = "others"
    return c
