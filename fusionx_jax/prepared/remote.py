"""Prepared sets at addresses (gs://, s3://, memory://): shards are copied into a local cache by fsspec."""

import os

from fusionx_jax import contract as contract_lib
from fusionx_jax.errors import InputError


def is_remote(directory: str) -> bool:
    """Whether a prepared set is named by an address (gs://, s3://, memory://) rather than a path."""
    return "://" in directory


def absolute(dataset: str) -> str:
    """Prepared sets as they can be found from anywhere; addresses stay as they are."""
    parts = [d.strip() for d in dataset.split(",")]
    return ",".join(d if is_remote(d) else os.path.abspath(d) for d in parts)


def local_file(directory: str, name: str) -> str:
    """Path of a file of a prepared set; one that is elsewhere is copied into the cache first, by fsspec.

    The cache is `$FUSIONX_CACHE`, or `~/.cache/fusionx`; a copy is used as long as the original has not changed.

    Raises:
      InputError: it is not there, or the file system is not known or needs a package that is not installed.
    """
    if not is_remote(directory):
        return os.path.join(directory, name)
    import fsspec

    cache = os.environ.get("FUSIONX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "fusionx")
    address = f"{directory.rstrip('/')}/{name}"
    try:
        return fsspec.open_local(f"filecache::{address}", filecache={"cache_storage": cache, "check_files": True})
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {address}; give the address of a finished prepared set (its {contract_lib.FILE_NAME} is "
            "written last)."
        ) from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{address} cannot be read ({error}); check the address, access and packages.") from error
