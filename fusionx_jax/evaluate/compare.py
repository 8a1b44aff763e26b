"""Methods beside each other: rows over pretraining seeds, paired differences, labels needed, cost.

A comparison is a folder with `sweep.json` (methods and seeds) and one workdir for each pretraining, whose
`sweep_member.json` says where its cells are. Everything here is made from those cells.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fusionx_jax import files, pretrain
from fusionx_jax.contract import InputError
from fusionx_jax.evaluate import cells as cells_lib
from fusionx_jax.evaluate import metrics, results, run
from fusionx_jax.models import build

SETTINGS_FILE = "sweep.json"
MEMBER_FILE = "sweep_member.json"
REFERENCE = "fusionx"
_MAIN = (*run.MAIN_METRICS.values(), "r2")

Group = tuple[str, str, str, str]  # method, modalities, task, evaluator
Cells = Mapping[tuple[str, int], cells_lib.Cell]


def describe(setting: run.Setting) -> dict[str, Any]:
    """What a comparison says of one pretraining beside its cells: cost, and the context of its rows."""
    config = setting.config
    shapes = jax.eval_shape(lambda: build.init_params(setting.model, jax.random.key(0)))
    encoder = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes.get("encoder", {})))
    return {
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)),
        "encoder_parameters": encoder,
        "flops_per_pair": pretrain.flops_per_pair(config, setting.model, setting.saved.contract),
        "pairs_per_s": _speed(setting.workdir),
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "context": run.context(setting)._asdict(),
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
    """The methods and seeds of a comparison.

    Raises:
      InputError: the folder is none, or its file is damaged.
    """
    path = os.path.join(workdir, SETTINGS_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); give the workdir of `python -m experiments.label_sweep`."
        ) from error


def members(workdir: str) -> dict[str, list[tuple[dict[str, Any], dict[Group, Cells]]]]:
    """By method, each finished pretraining's description and cells."""
    out: dict[str, list] = {}
    for method, seeds in read_settings(workdir)["methods"].items():
        for seed in seeds:
            place = os.path.join(workdir, method.replace("/", "+"), f"seed{seed}")
            path = os.path.join(place, MEMBER_FILE)
            if not os.path.exists(path):
                continue
            with open(path, encoding="utf-8") as f:
                about = json.load(f)
            about["context"]["checkpoint"] = os.path.relpath(place, workdir)  # tables travel, folders stay
            folder = os.path.join(place, "cells", os.path.basename(about["cells"]))
            out.setdefault(method, []).append((about, cells_lib.Store(folder).read_all()))
    return out


def groups(found: Mapping[str, list]) -> dict[Group, tuple[results.Context, list[Cells]]]:
    """Every group of cells with those of all its pretrainings, in the order of methods."""
    out: dict[Group, tuple[results.Context, list[Cells]]] = {}
    for pretrainings in found.values():
        for about, by_group in pretrainings:
            for group, cells in by_group.items():
                out.setdefault(group, (results.Context(**about["context"]), []))[1].append(cells)
    return out


def _means(pretrainings: list[Cells], label: str, metric: str) -> np.ndarray | None:
    if not results.complete(pretrainings, label):
        return None
    return metrics.resampled_means(results.vectors(pretrainings, label, metric), seed=0)


def _labels(pretrainings: list[Cells]) -> list[str]:
    return sorted({label for label, _ in pretrainings[0]}, key=results.label_order)


def _main_metric(pretrainings: list[Cells]) -> str:
    held = next(iter(pretrainings[0].values())).values
    return next(m for m in _MAIN if m in held)


def differences(found: Mapping[Group, tuple[results.Context, list[Cells]]]) -> Iterator[dict[str, Any]]:
    """FusionX-Net less every other method, on the same test tiles, resamples and label subsets.

    Networks trained on labels alone are compared with FusionX-Net's linear probe, everything else evaluator by
    evaluator.
    """
    for group, (about, pretrainings) in found.items():
        method, shown, task, evaluator = group
        against = "linear_probe" if evaluator == "scratch" else evaluator
        own = found.get((REFERENCE, shown, task, against))
        if method == REFERENCE or own is None:
            continue
        metric = _main_metric(pretrainings)
        for label in _labels(pretrainings):
            ours, theirs = _means(own[1], label, metric), _means(pretrainings, label, metric)
            if ours is None or theirs is None:
                continue
            value, low, high = metrics.percentiles(ours - theirs)
            verdict = "wins" if low > 0 else "loses" if high < 0 else "ties"
            yield {
                "dataset": about.dataset, "method": method, "modalities": shown, "task": task, "evaluator": evaluator,
                "label": label, "metric": metric, "fusionx_minus_method": value, "ci_low": low, "ci_high": high,
                "fusionx": verdict, "pretrainings": len(pretrainings), "fusionx_pretrainings": len(own[1]),
                "simulated": about.simulated,
            }  # fmt: skip


def labels_needed(found: Mapping[Group, tuple[results.Context, list[Cells]]]) -> Iterator[dict[str, Any]]:
    """How many labels a method needs to match each network trained from scratch on all of them."""
    targets = {g: v for g, v in found.items() if g[3] == "scratch" and any(label == "1" for label, _ in v[1][0])}
    for (rival, shown, task, _), (_, rival_cells) in targets.items():
        metric = _main_metric(rival_cells)
        target = _means(rival_cells, "1", metric)
        for group, (about, pretrainings) in found.items():
            if group[1:3] != (shown, task) or group[0] == rival:
                continue
            labels = [x for x in _labels(pretrainings) if not x.endswith("shot")]
            curve = [_means(pretrainings, x, metric) for x in labels]
            if not curve or any(c is None for c in curve):
                continue
            counts = [float(x) * about.num_train for x in labels]
            needed = metrics.labels_needed(counts, np.stack(curve), target)
            low, high = np.percentile(needed[1:], [2.5, 97.5], method="nearest") if len(needed) > 1 else (np.nan,) * 2
            yield {
                "dataset": about.dataset, "method": group[0], "modalities": shown, "task": task,
                "evaluator": group[3], "to_match": rival, "metric": metric, "target": float(target[0]),
                "labels": float(needed[0]), "ci_low": float(low), "ci_high": float(high), "all_labels": about.num_train,
                "least_tried": counts[0], "simulated": about.simulated,
            }  # fmt: skip


def cost(found: Mapping[str, list]) -> Iterator[dict[str, Any]]:
    """Parameters, FLOPs and speed of every method's pretraining, means over its seeds."""
    keys = ("parameters", "encoder_parameters", "flops_per_pair", "num_steps", "batch_size", "learning_rate")
    for method, pretrainings in found.items():
        first = pretrainings[0][0]
        rates = [a["pairs_per_s"] for a, _ in pretrainings if a["pairs_per_s"]]
        yield {
            "method": method, "pretrainings": len(pretrainings), **{k: first[k] for k in keys},
            "pairs_per_s": float(np.mean(rates)) if rates else "",
        }  # fmt: skip


def write_tables(workdir: str) -> dict[str, list[tuple[dict[str, Any], dict[Group, Cells]]]]:
    """results.csv, differences.csv, labels_needed.csv and methods.csv of a comparison; returns its `members`."""
    found = members(workdir)
    grouped = groups(found)
    rows = [row for group, (about, cells) in grouped.items() for row in results.from_cells(group, cells, about)]
    results.write(os.path.join(workdir, results.FILE_NAME), rows)
    for name, table in (
        ("differences.csv", differences(grouped)),
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
