"""Sentences on a finished set that its user should know: what files declare, and classes that cannot be scored."""

from collections.abc import Iterable, Mapping, Sequence

from fusionx_jax.contract import Contract, Task

_NAMED = 8  # classes that a sentence names


def on_files(remarks: Iterable[Mapping[str, int]]) -> list[str]:
    """What the files of the tiles declare that was applied, from the number of tiles of each remark by shard."""
    total: dict[str, int] = {}
    for by_remark in remarks:
        for remark, tiles in by_remark.items():
            total[remark] = total.get(remark, 0) + tiles
    return [f"{remark} ({tiles} tiles)" for remark, tiles in sorted(total.items())]


def on_classes(contract: Contract) -> list[str]:
    """Classes that a split lacks, and classes of multi-label tasks that every tile of a split has."""
    out = []
    for name, task in contract.tasks.items():
        for split, counts in task.counts.items():
            absent = [c for c, count in zip(task.classes, counts) if not count]
            if absent:
                out.append(f"{name}: {split} has no {_unit(task)} of {_list(absent)}")
            everywhere = [c for c, count in zip(task.classes, counts) if count == contract.splits[split]]
            if task.kind == "multi" and everywhere:
                out.append(f"{name}: every tile of {split} has the class {_list(everywhere)}, so none is a negative")
    return out


def _unit(task: Task) -> str:
    return "pixel" if task.kind == "pixel" else "tile"


def _list(classes: Sequence[str]) -> str:
    more = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {more} more" if more > 0 else "")
