"""The collectives of a compiled program, read from its HLO text; those in loops count as often as they run.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{\s*$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?([%\w.\-, ]+)\}?")


class Collective(NamedTuple):
    """Collectives of one kind over the same mesh axes: how often a step runs them, and the bytes of their results."""

    kind: str
    axes: tuple[str, ...]
    per_step: int
    bytes: int


def collectives(text: str, axes: Sequence[str], sizes: Sequence[int]) -> list[Collective]:
    """The collectives of a partitioned module by kind and mesh axes.

    Args:
      text: `compiled.as_text()` of a program on a mesh.
      axes, sizes: the mesh's axes and their sizes, devices numbered row by row.
    """
    lines, entry = _computations(text)
    found: dict[tuple[str, tuple[str, ...]], list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, times in _runs(lines, entry).items():
        for line in lines[name]:
            kind = _kind(line)
            group = _group(line, math.prod(sizes)) if kind else []
            if kind and len(group) > 1:
                total = found[kind, _axes(group, axes, sizes)]
                total[0] += times
                total[1] += times * _result_bytes(line, kind)
    return [Collective(k, a, *v) for (k, a), v in sorted(found.items())]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the entry."""
    out: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            current = opened.group(1)
            out[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            out[current].append(line)
    return out, entry


def _runs(lines: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the entry."""
    times: dict[str, int] = collections.Counter()

    def walk(name: str, factor: int) -> None:
        times[name] += factor
        for callee, more in _calls(lines[name], lines):
            if callee in lines:
                walk(callee, factor * more)

    walk(entry, 1)
    return times


def _calls(body: Sequence[str], lines: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in body:
        loop = re.search(r"\bwhile\(.*\bbody=%?([\w.\-]+)", line)
        if loop:
            yield loop.group(1), _trips(line, lines)
        elif _kind(line) is None:  # a collective's to_apply is its sum
            for names in _CALLED.findall(line):
                for name in names.split(","):
                    yield name.strip().lstrip("%"), 1


def _trips(line: str, lines: dict[str, list[str]]) -> int:
    """Trip count of a loop: as the compiler annotated it, or the bound in its condition."""
    known = re.search(r'"known_trip_count":\s*\{"n":\s*"(\d+)"', line)
    if known:
        return int(known.group(1))
    condition = re.search(r"\bcondition=%?([\w.\-]+)", line)
    body = lines.get(condition.group(1), []) if condition else []
    if any("direction=LT" in x for x in body):
        limits = [int(n) for x in body for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", x)]
        if len(limits) == 1:
            return limits[0]
    return 1


def _kind(line: str) -> str | None:
    """The collective of a line; of an asynchronous pair the start."""
    for kind in _KINDS:
        if re.search(rf"[\]\)\}}] {kind}(-start)?\(", line):
            return kind
    return None


def _result_bytes(line: str, kind: str) -> int:
    """Bytes of the result; an asynchronous start gives a pair of operand and result, of which the last counts."""
    left = line.split(f" {kind}")[0].split(" = ", 1)[-1]
    parts = [math.prod(int(n) for n in dims.split(",") if n) * _BYTES.get(t, 4) for t, dims in _SHAPE.findall(left)]
    if f"{kind}-start(" in line and kind in ("all-gather", "collective-permute") and len(parts) > 1:
        parts = parts[len(parts) // 2 :]
    return sum(parts)


def _group(line: str, count: int) -> list[int]:
    """The first replica group of a collective."""
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if explicit:
        return [int(n) for n in explicit.group(1).split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        rows, columns, dims, order = iota.groups()
        devices = np.arange(count).reshape([int(n) for n in dims.split(",")])
        if order:
            devices = devices.transpose([int(n) for n in order.split(",")])
        return devices.reshape(int(rows), int(columns))[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    )
    if named:
        sizes = {k.strip().strip("'"): int(v) for k, v in (a.split("=") for a in named.group(1).split(","))}
        devices = np.arange(count)
        if named.group(2):
            devices = devices.reshape([int(n) for n in named.group(2).split(",")])
            if named.group(3):
                devices = devices.transpose([int(n) for n in named.group(3).split(",")])
        over = [a.strip().strip("'") for a in named.group(4).split(",")]
        if all(a in sizes for a in over):
            names = list(sizes)
            order = [*(names.index(a) for a in sizes if a not in over), *(names.index(a) for a in over)]
            grid = devices.reshape(list(sizes.values())).transpose(order)
            return grid.reshape(-1, math.prod(sizes[a] for a in over))[0].tolist()
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if pairs:
        return [int(pairs.group(1)), int(pairs.group(2))]
    return list(range(count))  # no groups named: all


def _axes(group: Sequence[int], axes: Sequence[str], sizes: Sequence[int]) -> tuple[str, ...]:
    """The mesh axes along which a group's members differ."""
    places = np.array(np.unravel_index(group, sizes))
    return tuple(a for a, p in zip(axes, places) if len(set(p.tolist())) > 1)
