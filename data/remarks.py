"""Sentences on a finished set that its user should know: what files declare, and classes that cannot be scored."""

from collections.abc import Iterable, Mapping, Sequence

from fusionx_jax.contract import Contract

_NAMED = 8  # classes that a sentence names


def on_files(remarks: Iterable[Mapping[str, int]]) -> list[str]:
    """What the files of the tiles declare that was applied, from the number of tiles of each remark by shard."""
    total: dict[str, int] = {}
    for by_remark in remarks:
        for remark, tiles in by_remark.items():
            total[remark] = total.get(remark, 0) + tiles
    return [f"{remark} ({tiles} tiles)" for remark, tiles in sorted(total.items())]


def on_classes(contract: Contract) -> list[str]:
    """Classes that splits lack, and classes of multi-label tasks that every tile of a split has."""
    out = []
    for name, task in contract.tasks.items():
        absent, everywhere = dict[str, list[str]](), dict[str, list[str]]()  # splits by list of classes
        for split, counts in task.counts.items():
            named = list(zip(task.classes, counts))
            absent.setdefault(_list([c for c, count in named if not count]), []).append(split)
            if task.kind == "multi":
                always = [c for c, count in named if count == contract.splits[split]]
                everywhere.setdefault(_list(always), []).append(split)
        unit = "pixel" if task.kind == "pixel" else "tile"
        out += [f"{name}: {', '.join(splits)} without any {unit} of {c}" for c, splits in absent.items() if c]
        out += [
            f"{name}: every tile of {', '.join(splits)} has the class {c}, which cannot be scored without a negative"
            for c, splits in everywhere.items()
            if c
        ]
    return out


def _list(classes: Sequence[str]) -> str:
    more = len(classes) - _NAMED
    return ", ".join(classes[:_NAMED]) + (f" and {more} more" if more > 0 else "")
