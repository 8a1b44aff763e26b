"""Named entries, each registered once: methods, maskings, metrics, evaluators, commands, data sets.

What is not registered raises; nothing that is looked up here is dropped silently.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from fusionx_jax.errors import InputError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries of one kind by name, in the order of registration, which is the order of tables and help pages."""

    def __init__(self, kind: str):
        """`kind` is what an error message calls an entry, e.g. "evaluator"."""
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> Entry:
        """Adds an entry and returns it.

        Raises:
          ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"The {self.kind} {name!r} is registered twice.")
        self._entries[name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Removes an entry, for tests that add one."""
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        """Raises InputError, naming what there is, for a name that is not registered."""
        if name not in self._entries:
            raise InputError(f"There is no {self.kind} {name!r}; the known ones are {', '.join(self._entries)}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
