"""Labels of a prepared set's tasks, and the label subsets that models are trained on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fusionx_jax import files, progress
from fusionx_jax.contract import IGNORE_LABEL, Task
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import segmentation, subsets
from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.records import CellKey, LabelBudget, parse_budget
from fusionx_jax.prepared import sets


class Labels(NamedTuple):
    """A task's labels.

    targets: by split [N, K]: 0/1 for kinds "multi" and "single" (one-hot); for "pixel" the share of each class among
      a tile's labeled pixels. NaN for an unlabeled tile.
    ids: of the tiles, by split.
    groups: scenes of the tiles, by split, by which the bootstrap resamples and folds are made; None without any.
    acquisitions: number of dates that the labels compare.
    """

    name: str
    kind: str
    feature: str
    classes: tuple[str, ...]
    targets: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]
    groups: dict[str, np.ndarray] | None
    acquisitions: int = 1

    def select(self, tiles: Mapping[str, np.ndarray], source: str = "") -> "Labels":
        """The labels of some tiles by split, taken from the split of that name, or all from the split `source`."""
        return self._replace(
            targets={s: self.targets[source or s][index] for s, index in tiles.items()},
            ids={s: self.ids[source or s][index] for s, index in tiles.items()},
            groups={s: self.groups[source or s][index] for s, index in tiles.items()} if self.groups else None,
        )

    def joined(self, splits: Sequence[str], name: str) -> "Labels":
        """The labels of several splits as those of one split."""

        def join(by_split: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.concatenate([by_split[s] for s in splits])}

        groups = join(self.groups) if self.groups else None
        return self._replace(targets=join(self.targets), ids=join(self.ids), groups=groups)

    def absent_classes(self, members: np.ndarray) -> tuple[str, ...]:
        """Classes without an example among some training tiles."""
        present = (self.targets["train"][members] > 0).any(0)
        return tuple(c for c, p in zip(self.classes, present) if not p)


def read_labels(prepared: sets.Readable, config: ConfigDict) -> list[Labels]:
    """The tasks that `config` (its `evaluate` part) asks for and the set has, with the labels of every tile.

    Raises:
      InputError: the set has none of them, or the scored tiles cannot score any class of one.
    """
    contract, split = prepared.contract, str(config.score_split)
    names = [t for t in config.tasks if t in contract.tasks]
    if not names:
        raise InputError(
            f"{prepared.directory} has no task of {', '.join(config.tasks)} (it has "
            f"{', '.join(contract.tasks) or 'none'}); set --config.evaluate.tasks, or prepare it with labels."
        )
    group = contract.group_feature
    scalar = [contract.tasks[name].feature for name in names if contract.tasks[name].kind != "pixel"]
    columns = _read_columns(prepared, split, [*dict.fromkeys(scalar), "id", *([group] if group else [])])
    folds = config.get("folds", 0)
    out = []
    for name in names:
        task = contract.tasks[name]
        # Without folds, pixel labels of other splits are not read: it takes as long as reading the tiles.
        splits = list(columns) if task.kind != "pixel" or folds else ["train", split]
        targets = {s: _targets(prepared, task, columns[s], s) for s in splits}
        if task.kind != "pixel":
            scored = np.concatenate(list(targets.values())) if folds else targets[split]
            where = "folds" if folds else f"{split} split"
            _check_scored(name, task, scored[np.isfinite(scored).all(1)], where, prepared.directory)
        ids = {s: columns[s]["id"] for s in splits}
        groups = {s: columns[s][group] for s in splits} if group else None
        out.append(Labels(name, task.kind, task.feature, task.classes, targets, ids, groups, task.acquisitions))
    return out


def _targets(prepared: sets.Readable, task: Task, columns: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    """The targets of a split's tiles, NaN for unlabeled ones."""
    count = len(task.classes)
    if task.kind == "pixel":
        return segmentation.shares(prepared, split, task.feature, count)
    values = columns[task.feature]
    unlabeled = values == IGNORE_LABEL
    if task.kind == "single":
        return np.where(unlabeled[:, None], np.nan, np.eye(count)[np.where(unlabeled, 0, values)])
    return np.where(unlabeled, np.nan, values.astype(np.float64))


def scored_classes(kind: str, targets: np.ndarray) -> np.ndarray:
    """Which classes a split can score [K]: multi-label ones need tiles with and without, single-label ones a tile."""
    return np.asarray((targets > 0).any(0)) if kind == "single" else numerics.scored_classes(targets > 0)


def _check_scored(name: str, task: Task, targets: np.ndarray, where: str, directory: str) -> None:
    scored = scored_classes(task.kind, targets)
    unscored = [c for c, s in zip(task.classes, scored) if not s]
    if len(unscored) == len(task.classes):
        raise InputError(
            f"The {where} of {directory} cannot score any class of task {name!r}: no class has both tiles with "
            "it and tiles without it; use more tiles or other splits."
        )
    if unscored:
        progress.logger.warning(
            "Task %s: %s cannot be scored on the %s and is excluded from macro metrics.",
            name,
            ", ".join(unscored),
            where,
        )


def _read_columns(prepared: sets.Readable, scored: str, names: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Small features of every tile, by split with tiles; one pass over the records."""
    splits = {s: n for s, n in prepared.contract.splits.items() if n}
    prepared.size("train"), prepared.size(scored)  # both are needed: refused here if they are empty
    out: dict[str, dict[str, np.ndarray]] = {}
    with progress.Progress(sum(splits.values()), "labels", "tile") as bar:
        for split, size in splits.items():
            parts = []
            for start in range(0, size, 512):
                parts.append(prepared.read(split, np.arange(start, min(start + 512, size)), names))
                bar.advance(len(parts[-1][names[0]]))
            out[split] = {n: np.concatenate([p[n] for p in parts]) for n in names}
    return out


def label_budgets(fractions: Sequence[float], shots: Sequence[int]) -> list[LabelBudget]:
    """The budgets that `label_fractions` and `evaluate.shots` ask for."""
    return [LabelBudget(fraction=f) for f in fractions] + [LabelBudget(shots=k) for k in shots]


def label_subsets(
    labels: Labels, config: ConfigDict, fractions: Sequence[float], folder: str, division: str = ""
) -> dict[CellKey, np.ndarray]:
    """Positions of the labeled training tiles by budget and seed: nested subsets, read from id files or drawn.

    Subsets that are drawn are written to `folder`; `evaluate.subset_dir` names a folder of id files to use instead. In
    both the files of a `division` that has a name are in a folder of that name.

    Raises:
      InputError: `evaluate.subset_dir` lacks a file, or a file does not fit the set.
    """
    names = [b.name for b in label_budgets(fractions, config.shots)]
    folder, given = (files.join(d, division) if d and division else d for d in (folder, config.subset_dir))
    out: dict[CellKey, np.ndarray] = {}
    for seed in range(config.seeds):
        ids = labels.ids["train"].tolist()
        drawn = subsets.read(given or folder, ids, names, seed)
        if drawn is None:
            if given:
                missing = [subsets.file_name(n, seed) for n in names]
                missing = [n for n in missing if not files.exists(files.join(given, n))]
                raise InputError(
                    f"evaluate.subset_dir {given} lacks {', '.join(missing)}; each fraction and seed needs one."
                )
            drawn = subsets.draw(labels.targets["train"] > 0, fractions, config.shots, seed)
            subsets.write(folder, ids, drawn, seed)
        out |= {CellKey(parse_budget(name), seed): positions for name, positions in drawn.items()}
    return out


def warn_of_absent_classes(labels: Labels, drawn: Mapping[CellKey, np.ndarray]) -> None:
    """Logs which classes have no example in some label subset; they are scored all the same."""
    for budget in dict.fromkeys(key.budget for key in drawn):
        absent = {c for key, m in drawn.items() if key.budget == budget for c in labels.absent_classes(m)}
        if absent:
            progress.logger.warning(
                "Task %s: with %s of the labels, some label subset has no example of %s; these classes are scored all "
                "the same.",
                labels.name,
                budget.title,
                ", ".join(sorted(absent)),
            )
