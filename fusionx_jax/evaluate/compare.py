"""Methods beside each other: rows over pretraining seeds, paired differences, labels needed, cost.

A comparison is a folder with `sweep.json` (methods and seeds) and one workdir for each pretraining, whose
`sweep_member.json` says where its cells are. Everything here is made from those cells.
"""

import csv
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import files
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import cells as cells_lib
from fusionx_jax.evaluate import features, measure
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.evaluate.numerics import metrics
from fusionx_jax.models import build
from fusionx_jax.prepared import sets
from fusionx_jax.training import flops

SETTINGS_FILE = "sweep.json"
MEMBER_FILE = "sweep_member.json"
REFERENCE = "fusionx"
_MAIN = (*measure.MAIN_METRICS.values(), "r2")

Group = tuple[str, str, str, str]  # method, modalities, task, evaluator
Cells = Mapping[tuple[str, int], cells_lib.Cell]
Measured = Mapping[Group, Sequence[rows_lib.Pretraining]]


class Member(NamedTuple):
    """One finished pretraining: what it says of itself (`describe`) and its cells by group."""

    about: dict[str, Any]
    cells: dict[Group, Cells]


def place(workdir: str, method: str, seed: int) -> str:
    """Where one pretraining of a method lives."""
    return os.path.join(workdir, method.replace("/", "+"), f"seed{seed}")


def judged_by(config: ConfigDict, prepared: sets.Readable) -> dict[str, Any]:
    """What all members of a comparison must have in common: the data they are judged on, and how. What a network hands
    over is its own."""
    own = ("pooling", "batch_size")
    return {
        "data": features.contract_hash(prepared),
        "label_fractions": config_lib.to_json(config)["label_fractions"],
        **{k: v for k, v in measure.shared_settings(config).items() if k not in own},
    }


def evaluator_words(config: ConfigDict) -> dict[str, str]:
    """By evaluator, a word for its own settings as far as all members must share them: rates are tuned by method."""
    return measure.evaluator_settings(config, leave_out=("learning_rates",))


def describe(setting: measure.Setting) -> dict[str, Any]:
    """What a comparison says of one pretraining beside its cells: how it was judged, its cost, its rows' context."""
    config = setting.config
    shapes = jax.eval_shape(lambda: build.init_params(setting.model, jax.random.key(0)))
    encoder = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes.get("encoder", {})))
    return {
        "seed": config.seed,
        # Groups of bands are a network's own too: the set is named without them.
        "judged_by": judged_by(config, sets.open_sets(setting.prepared.directory)),
        "evaluators": evaluator_words(config),
        "cell_settings": measure.evaluator_settings(config),
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)),
        "encoder_parameters": encoder,
        "flops_per_pair": flops.flops_per_pair(config, setting.model, setting.saved.contract),
        "pairs_per_s": _speed(setting.workdir),
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "context": measure.context(setting)._asdict(),
    }


def _speed(workdir: str) -> float | None:
    """Median pairs per second of a pretraining; None where it took no step."""
    path = os.path.join(workdir, "metrics.csv")
    if not os.path.exists(path):
        return None
    with open(path, newline="", encoding="utf-8") as f:
        rates = [float(r["pairs_per_s"]) for r in csv.DictReader(f)]
    known = [r for r in rates if np.isfinite(r)]
    return float(np.median(known)) if known else None


def read_settings(workdir: str) -> dict[str, Any]:
    """The data set, the methods with their seeds, and the commands of a comparison.

    Raises:
      InputError: the folder is none, or its file is damaged.
    """
    path = os.path.join(workdir, SETTINGS_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            settings = json.load(f)
        if not isinstance(settings, dict) or not {"dataset", "methods"} <= settings.keys():
            raise ValueError("it names no data set or no methods")
        return {"commands": [], **settings}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); give the workdir of `python -m experiments.label_sweep`."
        ) from error


def members(workdir: str) -> dict[str, list[Member]]:
    """By method, each finished pretraining.

    Raises:
      InputError: two of them were judged on other data or in other ways, so that nothing follows from their difference.
    """
    out: dict[str, list[Member]] = {}
    for method, seeds in read_settings(workdir)["methods"].items():
        for seed in seeds:
            own = place(workdir, method, seed)
            about = read_member(workdir, method, seed)
            if about is None:
                continue
            about["context"]["checkpoint"] = os.path.relpath(own, workdir)  # tables travel, folders stay
            out.setdefault(method, []).append(Member(about, _cells_of(about, own)))
    every = {m.about["context"]["checkpoint"]: m for pretrainings in out.values() for m in pretrainings}
    check_alike({name: m.about["judged_by"] for name, m in every.items()})
    check_evaluators_alike({name: (m.about["evaluators"], {g[3] for g in m.cells}) for name, m in every.items()})
    return out


def _cells_of(about: Mapping[str, Any], place: str) -> dict[Group, Cells]:
    folder = os.path.join(place, "cells", os.path.basename(about["cells"]))  # where it is now; folders are moved
    return cells_lib.Store(folder, about["cell_settings"]).read_all()


def evaluators_used(about: Mapping[str, Any], workdir: str, method: str, seed: int) -> set[str]:
    """The evaluators that a finished pretraining was judged with."""
    return {group[3] for group in _cells_of(about, place(workdir, method, seed))}


def check_evaluators_alike(judged: Mapping[str, tuple[Mapping[str, str], Collection[str]]]) -> None:
    """Refuses runs (by name: the word of every evaluator's settings, and the evaluators used) that used an evaluator
    with other settings than the first that did."""
    for evaluator in sorted({e for words, _ in judged.values() for e in words}):
        used = {name: {evaluator: words[evaluator]} for name, (words, of) in judged.items() if evaluator in of}
        check_alike(used)


def read_member(workdir: str, method: str, seed: int) -> dict[str, Any] | None:
    """What a finished pretraining says of itself; None where there is none.

    Raises:
      InputError: the file is damaged, or of a version that did not say how it was judged.
    """
    path = os.path.join(place(workdir, method, seed), MEMBER_FILE)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as f:
            about = json.load(f)
        if not {"seed", "judged_by", "evaluators", "cell_settings", "context", "cells"} <= about.keys():
            raise ValueError("it lacks how the run was judged")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used ({error}); remove it and run the same sweep again.") from error
    return about


def check_alike(judged: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses runs (by name) that were, or would be, judged differently from the first."""
    first = next(iter(judged), None)
    for name, other in judged.items():
        for key, value in judged[first].items():
            if value != other.get(key):
                raise InputError(
                    f"{first} and {name} are judged differently ({key}: {value!r} and {other.get(key)!r}), so they "
                    "cannot be compared; judge all alike, or give a --workdir of their own to those that differ."
                )


def groups(found: Mapping[str, Sequence[Member]]) -> dict[Group, list[rows_lib.Pretraining]]:
    """Every group of cells with those of all its pretrainings, in the order of methods."""
    out: dict[Group, list[rows_lib.Pretraining]] = {}
    for pretrainings in found.values():
        for about, by_group in pretrainings:
            for group, cells in by_group.items():
                one = rows_lib.Pretraining(about["seed"], rows_lib.Context(**about["context"]), cells)
                out.setdefault(group, []).append(one)
    return out


def _means(pretrainings: Sequence[Cells], label: str, metric: str, seeds: Sequence[int] | None = None):
    """Resampled means over some label subsets, or all; None where there are none."""
    seeds = rows_lib.complete(pretrainings, label) if seeds is None else seeds
    return metrics.resampled_means(rows_lib.vectors(pretrainings, label, metric, seeds), seed=0) if seeds else None


def _shared(ours: Sequence[Cells], theirs: Sequence[Cells], label: str) -> tuple[list[int], list[int]]:
    """Label subsets that both sides were judged with, the same tiles in all pretrainings: seeds for either side, which
    differ where all labels are one subset, with which networks trained on labels are trained several times."""
    every = [*ours, *theirs]
    own, other = rows_lib.complete(ours, label), rows_lib.complete(theirs, label)
    subsets = {c[label, s].subset for side, seeds in ((ours, own), (theirs, other)) for c in side for s in seeds}
    if own and other and len(subsets) == 1:
        return own, other
    same = [s for s in own if s in other and len({cells[label, s].subset for cells in every}) == 1]
    return same, same


def _cells(pretrainings: Sequence[rows_lib.Pretraining]) -> list[Cells]:
    return [p.cells for p in pretrainings]


def _labels(pretrainings: Sequence[Cells]) -> list[str]:
    return sorted({label for label, _ in pretrainings[0]}, key=rows_lib.label_order)


def _main_metric(pretrainings: Sequence[Cells]) -> str:
    held = next(iter(pretrainings[0].values())).values
    return next(m for m in _MAIN if m in held)


def differences(found: Measured) -> Iterator[dict[str, Any]]:
    """FusionX-Net less every other method, on the same test tiles, resamples and label subsets: where one side was
    judged with more subsets, those that both have.

    Networks trained on labels alone are compared with FusionX-Net's linear probe, everything else evaluator by
    evaluator.
    """
    for group, of_method in found.items():
        about, pretrainings = of_method[0].context, _cells(of_method)
        method, shown, task, evaluator = group
        against = "linear_probe" if evaluator == "scratch" else evaluator
        own = _cells(found.get((REFERENCE, shown, task, against), ()))
        if method == REFERENCE or "/" in method or not own:
            continue
        metric = _main_metric(pretrainings)
        for label in _labels(pretrainings):
            seeds, other_seeds = _shared(own, pretrainings, label)
            if not seeds:
                continue
            value, low, high = _gap(own, pretrainings, label, metric, seeds, other_seeds)
            verdict = "wins" if low > 0 else "loses" if high < 0 else "ties"
            yield {
                "dataset": about.dataset, "method": method, "modalities": shown, "task": task, "evaluator": evaluator,
                "label": label, "metric": metric, "fusionx_minus_method": value, "ci_low": low, "ci_high": high,
                "fusionx": verdict, "label_subsets": len(seeds), "pretrainings": len(pretrainings),
                "fusionx_pretrainings": len(own), "simulated": about.simulated,
            }  # fmt: skip


def _gap(ours, theirs, label, metric, seeds, other_seeds) -> tuple[float, float, float]:
    """The difference of two means and its paired interval."""
    return metrics.percentiles(_means(ours, label, metric, seeds) - _means(theirs, label, metric, other_seeds))


def ablations(found: Measured) -> Iterator[dict[str, Any]]:
    """Every variant of a method (its name with changes after slashes) less the method itself, both with the pretraining
    seeds that both have, on the same test tiles, resamples and label subsets."""
    for group, of_method in found.items():
        base, _, changes = group[0].partition("/")
        of_base = found.get((base, *group[1:]), ())
        both = {p.seed for p in of_method} & {p.seed for p in of_base}
        if not changes or not both:
            continue
        about = of_method[0].context
        variant, plain = (_cells([p for p in side if p.seed in both]) for side in (of_method, of_base))
        metric = _main_metric(variant)
        for label in _labels(variant):
            seeds, other_seeds = _shared(variant, plain, label)
            if not seeds:
                continue
            value, low, high = _gap(variant, plain, label, metric, seeds, other_seeds)
            yield {
                "dataset": about.dataset, "method": base, "changes": changes, "modalities": group[1], "task": group[2],
                "evaluator": group[3], "label": label, "metric": metric,
                "value": float(_means(variant, label, metric, seeds)[0]),
                "of_method": float(_means(plain, label, metric, other_seeds)[0]),
                "variant_minus_method": value, "ci_low": low, "ci_high": high, "label_subsets": len(seeds),
                "pretrainings": len(both), "simulated": about.simulated,
            }  # fmt: skip


def labels_needed(found: Measured) -> Iterator[dict[str, Any]]:
    """How many labels a method needs to match each network trained from scratch on all of them."""
    targets = {g: _cells(v) for g, v in found.items() if g[3] == "scratch" and "1" in _labels(_cells(v))}
    for (rival, shown, task, _), rival_cells in targets.items():
        metric = _main_metric(rival_cells)
        target = _means(rival_cells, "1", metric)
        for group, of_method in found.items():
            about, pretrainings = of_method[0].context, _cells(of_method)
            if group[1:3] != (shown, task) or group[0] == rival:
                continue
            labels = [x for x in _labels(pretrainings) if not x.endswith("shot")]
            curve = [_means(pretrainings, x, metric) for x in labels]
            if not curve or any(c is None for c in curve):
                continue
            counts = [np.mean([c.num_labels for (name, _), c in pretrainings[0].items() if name == x]) for x in labels]
            needed = metrics.labels_needed(counts, np.stack(curve), target)
            low, high = np.percentile(needed[1:], [2.5, 97.5], method="nearest") if len(needed) > 1 else (np.nan,) * 2
            yield {
                "dataset": about.dataset, "method": group[0], "modalities": shown, "task": task,
                "evaluator": group[3], "to_match": rival, "metric": metric, "target": float(target[0]),
                "labels": float(needed[0]), "ci_low": float(low), "ci_high": float(high), "all_labels": about.num_train,
                "least_tried": counts[0], "simulated": about.simulated,
            }  # fmt: skip


def cost(found: Mapping[str, Sequence[Member]]) -> Iterator[dict[str, Any]]:
    """Parameters, FLOPs and speed of every method's pretraining, means over its seeds."""
    keys = ("parameters", "encoder_parameters", "flops_per_pair", "num_steps", "batch_size", "learning_rate")
    for method, pretrainings in found.items():
        first = pretrainings[0].about
        own = {k: first[k] for k in keys}
        if not first["num_steps"]:  # no pretraining, so nothing was spent on it, at no rate
            own |= {"flops_per_pair": "", "learning_rate": ""}
        rates = [a["pairs_per_s"] for a, _ in pretrainings if a["pairs_per_s"]]
        yield {
            "method": method, "pretrainings": len(pretrainings), **own,
            "pairs_per_s": float(np.mean(rates)) if rates else "",
        }  # fmt: skip


def write_tables(workdir: str) -> dict[str, list[Member]]:
    """results.csv, differences.csv, ablations.csv, labels_needed.csv and methods.csv of a comparison; returns its
    `members`."""
    found = members(workdir)
    grouped = groups(found)
    rows = [row for group, pretrainings in grouped.items() for row in rows_lib.from_cells(group, pretrainings)]
    rows_lib.write(os.path.join(workdir, rows_lib.FILE_NAME), rows)
    for name, table in (
        ("differences.csv", differences(grouped)),
        ("ablations.csv", ablations(grouped)),
        ("labels_needed.csv", labels_needed(grouped)),
        ("methods.csv", cost(found)),
    ):
        table = list(table)
        with files.replacing(os.path.join(workdir, name), newline="") as f:
            if table:
                writer = csv.DictWriter(f, list(table[0]))
                writer.writeheader()
                for line in table:
                    writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    return found
