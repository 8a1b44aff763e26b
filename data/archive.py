"""Raw data where users have them: an extracted folder, or a zip or plain tar file read without extracting it.

Nothing is ever extracted, so a member that points outside the archive cannot write anywhere; one that tries is refused
all the same, since it shows a damaged or hostile file.
"""

import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence

from fusionx_jax.errors import InputError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".gz", ".zst", ".7z", ".rar")


class Archive:
    """Files below `path` by their names relative to it, with forward slashes."""

    def __init__(self, path: str):
        """Opens a folder, `.zip` or `.tar`.

        Raises:
          InputError: there is no such file or folder, it is compressed as a whole, damaged, or has a member that
            points outside.
        """
        self.path = os.path.abspath(path)
        self._folders: dict[str, list[str]] | None = None  # of zip and tar files: members by folder
        self._open: zipfile.ZipFile | tarfile.TarFile | None = None
        if os.path.isdir(self.path):
            return
        if not os.path.exists(self.path):
            raise InputError(f"There is no file or folder {path}; --raw must name the extracted data or an archive.")
        name = self.path.lower()
        if name.endswith(_COMPRESSED):
            raise InputError(
                f"{path} is compressed as a whole and cannot be read at random; extract it (tar -xf {path}) and give "
                "the folder as --raw."
            )
        try:
            if name.endswith(".zip"):
                with zipfile.ZipFile(self.path) as f:
                    members = [n for n in f.namelist() if not n.endswith("/")]
            elif name.endswith(".tar"):
                with tarfile.open(self.path, "r:") as f:
                    members = [m.name for m in f.getmembers() if m.isfile() or m.issym() or m.islnk()]
            else:
                raise InputError(f"{path} is neither a folder nor a .zip or .tar file; give the data as one of these.")
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}); it is truncated or damaged: copy it again.") from error
        self._folders = {}
        self._dotted = bool(members) and all(m.startswith("./") for m in members)  # `tar -cf x.tar .`
        for member in members:
            parts = member.removeprefix("./").split("/")
            if member.startswith("/") or ".." in parts:
                raise InputError(f"{path} has the member {member!r}, which points outside the archive; do not use it.")
            for depth in range(len(parts)):
                children = self._folders.setdefault("/".join(parts[:depth]), [])
                if not children or children[-1] != parts[depth]:
                    children.append(parts[depth])
        self._folders = {k: sorted(set(v)) for k, v in self._folders.items()}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": None}  # a worker process opens the file itself

    def children(self, folder: str = "") -> list[str]:
        """Sorted names directly inside `folder`; empty if it is not there."""
        if self._folders is not None:
            return self._folders.get(folder, [])
        try:
            return sorted(os.listdir(os.path.join(self.path, folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, suffix: str) -> Iterator[str]:
        """Names of all files below the root that end in `suffix`, sorted by folder."""
        if self._folders is None:
            for folder, subfolders, files in os.walk(self.path):
                subfolders.sort()
                inside = os.path.relpath(folder, self.path).replace(os.sep, "/")
                prefix = "" if inside == "." else f"{inside}/"
                yield from (f"{prefix}{name}" for name in sorted(files) if name.endswith(suffix))
            return
        for folder in sorted(self._folders):
            names = (f"{folder}/{name}" if folder else name for name in self._folders[folder])
            yield from (name for name in names if name.endswith(suffix) and name not in self._folders)

    def exists(self, name: str) -> bool:
        if self._folders is None:
            return os.path.exists(os.path.join(self.path, name))
        folder, _, last = name.rpartition("/")
        return last in self._folders.get(folder, ())

    def file(self, name: str) -> str:
        """What rasterio opens: a path, or GDAL's name of an archive member."""
        if self._folders is None:
            return os.path.join(self.path, name)
        return f"/vsi{self.path.rpartition('.')[2].lower()}/{self.path}/{name}"

    def read(self, name: str) -> bytes:
        """A small file's content.

        Raises:
          InputError: it is not there or cannot be read.
        """
        try:
            if self._folders is None:
                with open(os.path.join(self.path, name), "rb") as f:
                    return f.read()
            if self._open is None:  # kept: opening reads the whole directory of the archive
                is_zip = self.path.lower().endswith(".zip")
                self._open = zipfile.ZipFile(self.path) if is_zip else tarfile.open(self.path, "r:")  # noqa: SIM115
            if isinstance(self._open, zipfile.ZipFile):
                return self._open.read(name)
            member = self._open.extractfile(f"./{name}" if self._dotted else name)
            if member is None:
                raise KeyError(f"{name} is not a regular file")
            return member.read()
        except (OSError, KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise InputError(f"{self.path} lacks {name} or cannot read it ({error}); copy it again.") from error

    def find_folder(self, name: str) -> str | None:
        """Where a folder called `name` stands: in the root, one level down, or the root itself; None if nowhere."""
        if name in self.children():
            return name
        inside = next((f"{child}/{name}" for child in self.children() if name in self.children(child)), None)
        return "." if inside is None and os.path.basename(self.path) == name else inside

    def require_folder(self, names: Sequence[str], what: str) -> str:
        """The first of the folders `names` that is there.

        Raises:
          InputError: none is; the message lists what is there instead.
        """
        for name in names:
            found = self.find_folder(name)
            if found is not None:
                return found
        content = ", ".join(self.children()[:6]) or "nothing"
        raise InputError(
            f"{self.path} does not look like {what}: it has no folder {' or '.join(names)} (it holds {content}); give "
            "the folder that contains it, completely extracted."
        )
