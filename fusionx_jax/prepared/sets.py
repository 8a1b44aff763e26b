"""Opens prepared sets: one, or a mixture of several, with band groups where a config has them."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from fusionx_jax.errors import InputError
from fusionx_jax.prepared import remote
from fusionx_jax.prepared.acquisitions import Acquisitions
from fusionx_jax.prepared.bands import BandGroups
from fusionx_jax.prepared.mixture import Mixture
from fusionx_jax.prepared.readable import Readable
from fusionx_jax.prepared.store import PreparedSet

__all__ = ["Readable", "open_for", "open_sets"]


def open_for(config: ConfigDict, dataset: str) -> Readable:
    """The sets of `dataset` for training: mixed by the config's `dataset_weights`, with its `band_groups` and
    `verify_records`, one date of each tile drawn as its `acquisitions` says.

    Raises:
      InputError: a set cannot be read, or the sets do not fit together.
    """
    groups, draw = dict(config.get("band_groups", {})), config.get("acquisitions", "same")
    return open_sets(dataset, config.get("dataset_weights", ()), groups, config.get("verify_records", False), draw)


def open_sets(
    dataset: str,
    weights: Sequence[float] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    verify: bool = False,
    draw: str = "",
) -> Readable:
    """Opens a prepared set, or a mixture of several.

    Args:
      dataset: directories or addresses of prepared sets, separated by commas.
      weights: share of each set in a mixture; without them each counts by its training tiles.
      groups: band groups, as `BandGroups` takes them.
      verify: verify the checksum of every record that is read.
      draw: how training draws one of several dates, as `Acquisitions` takes it; "": nothing is drawn.

    Raises:
      InputError: a set cannot be read, or the sets do not fit together.
    """
    directories = remote.directories(dataset)
    if not directories:
        raise InputError("The data set's directory is empty; pass the directory of a prepared set as --dataset.")
    members: list[Readable] = [PreparedSet(d, verify) for d in directories]
    if draw:
        members = [Acquisitions(m, draw) if _has_dates(m) else m for m in members]
    opened = members[0] if len(members) == 1 else Mixture(members, weights)
    return BandGroups(opened, groups) if groups else opened


def _has_dates(reader: Readable) -> bool:
    return any(m.acquisitions > 1 for m in reader.contract.modalities.values())
