"""Weights that come with the package: `fusionx_jax.load("oscd-mini")`, `--init_from=oscd-mini`.

Each is a folder beside this file: an export to Orbax with the decoder, and a README.md that says what the weights were
trained on, with which command, and what they are allowed to be used for.
"""

import os

_HERE = os.path.dirname(os.path.abspath(__file__))


def names() -> list[str]:
    """The names of the weights, sorted."""
    return sorted(name for name in os.listdir(_HERE) if os.path.exists(os.path.join(_HERE, name, "README.md")))


def locate(path: str) -> str:
    """The folder of the weights called `path`; `path` itself where it is a folder or no such name."""
    return os.path.join(_HERE, path) if path in names() and not os.path.isdir(path) else path
