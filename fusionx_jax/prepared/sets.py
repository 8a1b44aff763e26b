"""Opens prepared sets: one, or a mixture of several, with groups of bands where a config asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionx_jax.errors import InputError
from fusionx_jax.prepared.bands import Grouped
from fusionx_jax.prepared.mixture import Mixture
from fusionx_jax.prepared.store import PreparedSet

Readable = PreparedSet | Mixture | Grouped


def open_for(config: Any, dataset: str) -> Readable:
    """The sets of `dataset` as a config reads them: mixed by its weights, with its groups of bands.

    Raises:
      InputError: one cannot be read, or they do not fit together.
    """
    return open_sets(dataset, config.get("dataset_weights", ()), dict(config.get("band_groups", {})))


def open_sets(
    dataset: str, weights: Sequence[float] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Readable:
    """A prepared set, or a mixture of those that `dataset` lists with commas between; with groups of bands if asked.

    Raises:
      InputError: one cannot be read, or they do not fit together.
    """
    directories = [d.strip() for d in dataset.split(",") if d.strip()]
    if not directories:
        raise InputError("The data set's directory is empty; give that of a prepared set (--dataset).")
    if len(directories) == 1:
        opened = PreparedSet(directories[0])
    else:
        opened = Mixture([PreparedSet(d) for d in directories], weights)
    return Grouped(opened, groups) if groups else opened
