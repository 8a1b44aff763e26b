"""Where a compiled step spends its time: a profiler trace, and a table of it by operation.

The trace (`jax.profiler`, to be opened with XProf or Perfetto) names compiled operations; the program's text says which
part of the network and which primitive each came from.
"""

import collections
import csv
import glob
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from fusionx_jax import files
from fusionx_jax.errors import RunError

TABLE = "operations.csv"
# Parts of a traced name that say how it was called, not what it computes.
_WRAPPERS = re.compile(r"^(jit|jvp|transpose|vmap|while|body|cond|closed_call|checkpoint|rematted_computation|scan)\b")


class Row(NamedTuple):
    """One compiled operation: its share of the time and milliseconds in a step, over all threads or streams."""

    operation: str
    direction: str  # forward, backward or, outside of the network, "step"
    part: str
    primitive: str
    calls: float
    milliseconds: float
    share: float


def record(folder: str, text: str, steps: Callable[[int], None], count: int) -> list[Row]:
    """Runs `count` steps under the profiler and writes the trace and operations.csv to `folder`.

    `text` is the compiled program's. Returns the table's rows, the longest first.
    """
    os.makedirs(folder, exist_ok=True)
    with jax.profiler.trace(folder):
        steps(count)
    newest = max(glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True), key=os.path.getmtime)
    rows = table(newest, text, count)
    with files.replacing(os.path.join(folder, TABLE)) as f:
        writer = csv.writer(f)
        writer.writerow(Row._fields)
        writer.writerows([*r[:4], f"{r.calls:g}", f"{r.milliseconds:.4f}", f"{r.share:.5f}"] for r in rows)
    return rows


def table(trace: str, text: str, steps: int) -> list[Row]:
    """Rows of an .xplane.pb file of `steps` steps, the longest first."""
    header = re.match(r"HloModule ([\w.\-]+)", text)
    if not header:
        raise RunError("The compiled step has no HLO text on this backend, so its trace cannot be read.")
    origin, module = origins(text), header[1]
    spent: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for plane in jax.profiler.ProfileData.from_file(trace).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name in origin and stats.get("hlo_module", module) == module:
                    spent[name][0] += 1
                    spent[name][1] += event.duration_ns
    total = sum(ns for _, ns in spent.values())
    rows = [
        Row(name, *origin[name], calls / steps, ns / 1e6 / steps, ns / total) for name, (calls, ns) in spent.items()
    ]
    return sorted(rows, key=lambda r: -r.milliseconds)


def origins(text: str) -> dict[str, tuple[str, str, str]]:
    """Direction, part of the network and primitive of every operation of an HLO text, except loops and calls, whose
    time is that of the operations inside."""
    out = {}
    for line in text.splitlines():
        op = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*?[\]\)\}] ([\w\-]+)\(", line)
        if not op or op.group(2) in ("while", "call", "conditional", "parameter", "constant"):
            continue
        op_name = re.search(r'op_name="([^"]*)"', line)
        out[op.group(1)] = _origin(op_name.group(1) if op_name else "", op.group(2))
    return out


def _origin(traced: str, opcode: str) -> tuple[str, str, str]:
    direction = "backward" if "transpose(" in traced else "forward" if "jvp(" in traced else "step"
    names = [n for n in traced.split("/") if n and not _WRAPPERS.match(n)]
    primitive = names.pop() if names else opcode
    names = [n.split(".")[0] for n in names]
    part = "/".join(n for i, n in enumerate(names) if i == 0 or n != names[i - 1])
    return direction, part, primitive


def by_part(rows: Sequence[Row], most: int = 15) -> list[dict[str, float | str]]:
    """Shares of the time by the last part of the network and primitive, the `most` largest."""
    sums: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for r in rows:
        key = r.part.split("/")[-1] or r.direction, r.primitive
        sums[key][0] += r.milliseconds
        sums[key][1] += r.share
    largest = sorted(sums.items(), key=lambda item: -item[1][0])[:most]
    return [{"part": p, "primitive": q, "milliseconds": ms, "share": share} for (p, q), (ms, share) in largest]
