"""YAML that people write, read strictly: every scalar is the text in the file until a key says what it must be.

YAML 1.1 turns `no` into False, `012` into 10 and `2020-01-01` into a date, and keeps the last of two equal keys. Here a
reader asks each node for a text, a number or a mapping with named keys; anything else is an error with file and line.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NoReturn

import yaml

from fusionx_jax.errors import InputError

_EMPTY = ("", "~", "null", "Null", "NULL")


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of a YAML file.

    Attributes:
      path: the file.
      key: keys that lead to the value, joined by dots, as errors name it.
    """

    path: str
    key: str
    node: yaml.Node

    def error(self, problem: str) -> InputError:
        """An error that names file, line and key. `problem` continues the sentence, e.g. "is empty; …"."""
        what = f"`{self.key}`" if self.key else "the file"
        return InputError(f"{self.path}, line {self.node.start_mark.line + 1}: {what} {problem}")

    def refuse(self, problem: str) -> NoReturn:
        raise self.error(problem)

    def is_text(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode)

    def is_sequence(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    def is_empty(self) -> bool:
        """Whether the key has no value (nothing, `~` or `null`, without quotes)."""
        node = self.node
        return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _EMPTY

    def text(self) -> str:
        """The scalar as it is written, without quotes."""
        if not self.is_text() or self.is_empty():
            self.refuse(f"is {self._kind()}; it must be a text.")
        return str(self.node.value)

    def number(self) -> float:
        """A finite decimal number, or `nan`."""
        text = self.text()
        try:
            value = float(text.replace(".nan", "nan")) if "_" not in text else None
        except ValueError:
            value = None
        if value is None or math.isinf(value):
            self.refuse(f"is {text!r}; it must be a number with a decimal point.")
        return value

    def integer(self) -> int:
        value = self.number()
        if not value.is_integer():
            self.refuse(f"is {self.text()!r}; it must be a whole number.")
        return int(value)

    def boolean(self) -> bool:
        text = self.text()
        if text not in ("true", "false"):
            self.refuse(f"is {text!r}; it must be true or false.")
        return text == "true"

    def sequence(self) -> list["Node"]:
        if not self.is_sequence():
            self.refuse(f"is {self._kind()}; it must be a list, e.g. [a, b].")
        return [Node(self.path, f"{self.key}[{i}]", n) for i, n in enumerate(self.node.value)]

    def entries(self) -> dict[str, "Node"]:
        """A mapping with any keys, as texts.

        Raises:
          InputError: it is no mapping, or a key occurs twice.
        """
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse(f"is {self._kind()}; it must be a mapping, e.g. {{key: value}}.")
        out: dict[str, Node] = {}
        for key, value in self.node.value:
            name = Node(self.path, self.key, key).text()
            child = Node(self.path, f"{self.key}.{name}" if self.key else name, value)
            if name in out:
                raise InputError(
                    f"{self.path}, line {key.start_mark.line + 1}: `{child.key}` is given twice, first in line "
                    f"{out[name].node.start_mark.line + 1}; keep one."
                )
            out[name] = child
        return out

    def mapping(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, "Node"]:
        """A mapping with known keys; those without a value are left out.

        Raises:
          InputError: a key is unknown, missing or given twice.
        """
        out = self.entries()
        known = (*required, *optional)
        for name, child in out.items():
            if name not in known:
                where = f"`{self.key}` has" if self.key else "the file has"
                raise InputError(
                    f"{self.path}, line {child.node.start_mark.line + 1}: {where} the unknown key {name!r}; the known "
                    f"keys are {', '.join(known)}."
                )
        out = {name: child for name, child in out.items() if not child.is_empty()}
        missing = [name for name in required if name not in out]
        if missing:
            self.refuse(f"lacks {', '.join(f'`{m}:`' for m in missing)}.")
        return out

    def _kind(self) -> str:
        if self.is_empty():
            return "empty"
        return "a list" if self.is_sequence() else "a text" if self.is_text() else "a mapping"


def read(path: str) -> Node:
    """Reads a YAML file with one document, in UTF-8 or, with a byte-order mark, UTF-16.

    Raises:
      InputError: the file is in another encoding, is not YAML, is empty, or uses anchors.
      FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as f:
        content = f.read()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8; save the file in UTF-8."
        ) from error
    try:
        aliases = [e for e in yaml.parse(text, Loader=yaml.SafeLoader) if isinstance(e, yaml.AliasEvent)]
        node = None if aliases else yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if aliases:  # nested ones expand without bound
        raise InputError(f"{path} uses the alias *{aliases[0].anchor}; aliases are not read: write the value out.")
    if node is None:
        raise InputError(f"{path} is empty.")
    return Node(path, "", node)
