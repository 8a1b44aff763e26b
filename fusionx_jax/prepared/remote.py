"""Prepared sets at addresses (gs://, s3://, memory://): fsspec copies shards into a local cache."""

import os

from fusionx_jax import contract as contract_lib
from fusionx_jax import files
from fusionx_jax.errors import InputError


def directories(dataset: str) -> list[str]:
    """The directories of a mixture, which commas separate; a directory that exists may have commas in its path."""
    if "," in dataset and not files.is_address(dataset) and files.is_folder(dataset):
        return [dataset]
    return [d.strip() for d in dataset.split(",") if d.strip()]


def absolute(dataset: str) -> str:
    """The absolute form of each of the sets that `dataset` lists, separated by commas."""
    return ",".join(files.absolute(d) for d in directories(dataset))


def local_file(directory: str, name: str) -> str:
    """Local path of a file of a prepared set; a file at an address is copied into the cache first.

    The cache is `$FUSIONX_CACHE`, or `~/.cache/fusionx`. A copy is used as long as the original has not changed.

    Raises:
      InputError: the file does not exist, or the file system is unknown or needs a package that is not installed.
    """
    if not files.is_address(directory):
        return os.path.join(directory, name)
    import fsspec

    cache = os.environ.get("FUSIONX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "fusionx")
    address = files.join(directory, name)
    try:
        return fsspec.open_local(f"filecache::{address}", filecache={"cache_storage": cache, "check_files": True})
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {address}; give the address of a finished prepared set (its {contract_lib.FILE_NAME} is "
            "written last)."
        ) from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"{address} cannot be read ({error}); check the address, the access rights and the file system's package "
            "(gcsfs for gs://, s3fs for s3://)."
        ) from error
