"""BigEarthNet v2 as rico-hdl writes it: one LMDB, a safetensors blob for each patch and sensor.

Keys are patch names (and `NAME_reference_map`); tensors are named by band, uint16 at the bands' own sizes, VV and VH
float32. Tensors have no georeference.
"""

import os

import numpy as np

from data.source import BadTile
from fusionx_jax.errors import InputError
from fusionx_jax.types import JsonObject, Untyped

FILE = "data.mdb"
_HEAD = 2 * 4096  # the two pages that describe the rest


_open: JsonObject = {}  # a process may open an LMDB only once


class Database:
    """Read-only view of the database in a folder."""

    def __init__(self, folder: str):
        """Opens the database.

        Raises:
          InputError: it is damaged, or the package that reads it is not installed.
        """
        self.folder = os.path.abspath(folder)
        self._transaction().abort()

    def _transaction(self) -> Untyped:
        try:
            import lmdb
        except ImportError as error:
            raise InputError(f"{self.folder} is an LMDB, and lmdb is not installed; `pip install lmdb`.") from error
        if self.folder not in _open:
            size = os.path.getsize(os.path.join(self.folder, FILE))
            try:
                if size < _HEAD:  # LMDB maps the file: pages past its end would end the process
                    raise lmdb.Error(f"{size} bytes are not a database")
                environment = lmdb.open(self.folder, readonly=True, lock=False, readahead=False)
                needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
                if size < needed:
                    environment.close()
                    raise lmdb.Error(f"{FILE} has {size} bytes of {needed}")
            except lmdb.Error as error:
                raise InputError(
                    f"{self.folder} cannot be read as LMDB ({error}); it is truncated or damaged: copy it again."
                ) from error
            _open[self.folder] = environment
        return _open[self.folder].begin()

    def names(self) -> set[str]:
        """All keys."""
        with self._transaction() as transaction, transaction.cursor() as cursor:
            return {key.decode() for key in cursor.iternext(values=False)}

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of one key.

        Raises:
          BadTile: the key is not there or its value is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        with self._transaction() as transaction:
            value = transaction.get(name.encode())
        if value is None:
            raise BadTile("missing patch", f"{self.folder} has no {name}")
        try:
            return load(bytes(value))
        except SafetensorError as error:
            raise BadTile("unreadable file", f"{self.folder}, {name}: {error}") from error
