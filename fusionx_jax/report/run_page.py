"""`fusionx report`: tables, figures and one self-contained HTML page of a workdir."""

import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from fusionx_jax import checkpoint, preprocess
from fusionx_jax import config as config_lib
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import measure
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.models import build
from fusionx_jax.prepared import sets
from fusionx_jax.report import figures, look, survey_page

FEW_TEST_TILES = 500  # below this the page says that it carries no claim
EMPTY_CELL = {"value": "–", "interval": ""}  # of a table for the template
_SPLITS = ("train", "val", "test")
TASK_NAMES = {"multi": "several classes a tile", "single": "one class a tile", "pixel": "a class for every pixel"}


def compare(rows: Sequence[rows_lib.Row], metric: str) -> list[str]:
    """Sentences on FusionX-Net against each other method: where it leads, ties (intervals overlap) or trails."""
    chosen = [r for r in rows if r.metric == metric and r.seed == rows_lib.ALL_SEEDS]
    own = {(r.evaluator, r.modalities, r.label): r for r in chosen if r.method == "fusionx"}
    shown = max((m for _, m, _ in own), key=lambda m: m.count("+"), default=None)
    name = look.METRIC_NAMES.get(metric, metric)
    sentences = []
    for method, evaluator in look.lines_of(chosen):
        against = "linear_probe" if evaluator == "scratch" else evaluator
        if method == "fusionx" or evaluator == "linear_probe_validation":
            continue
        parts: dict[str, list[str]] = {}
        of = [r for r in chosen if (r.method, r.evaluator, r.modalities) == (method, evaluator, shown)]
        for r in sorted(of, key=lambda r: rows_lib.label_order(r.label)):
            mine = own.get((against, shown, r.label))
            if mine is None:
                continue
            if mine.ci_low > r.ci_high:
                verdict = "leads clearly (95 % intervals apart)"
            elif mine.ci_high < r.ci_low:
                verdict = "trails clearly (95 % intervals apart)"
            else:
                verdict = f"{'leads' if mine.value > r.value else 'trails'} within overlapping intervals"
            gap = f"{rows_lib.label_name(r.label)} ({100 * (mine.value - r.value):+.1f} points)"
            parts.setdefault(verdict, []).append(gap)
        if parts:
            text = "; ".join(f"{verdict} at {', '.join(gaps)}" for verdict, gaps in parts.items())
            sentences.append(f"{name}, FusionX-Net against {look.line_name(method, evaluator)}: {text}.")
    return sentences


def table(rows: Sequence[rows_lib.Row], metric: str, shown: str) -> dict[str, Any]:
    """A table for the template: one line a method and evaluator, one column a label fraction or number of shots."""
    chosen = [r for r in rows if (r.metric, r.modalities, r.seed) == (metric, shown, rows_lib.ALL_SEEDS)]
    labels = sorted({r.label for r in chosen}, key=rows_lib.label_order)
    counts = {r.label: r.num_labels for r in chosen}
    most = max((r.num_seeds for r in chosen), default=0)
    pretrainings = max((r.num_pretrainings for r in chosen), default=0)
    out = []
    for method, evaluator in look.lines_of(chosen):
        by = {r.label: r for r in chosen if (r.method, r.evaluator) == (method, evaluator)}
        cells = []
        for label in labels:
            r = by.get(label)
            if r is None:
                cells.append(EMPTY_CELL)
                continue
            seeds = "" if r.num_seeds == most else f", {r.num_seeds} seed{'s' * (r.num_seeds > 1)}"
            interval = f"{100 * r.ci_low:.1f}–{100 * r.ci_high:.1f}{seeds}" if r.ci_low == r.ci_low else ""
            cells.append({"value": f"{100 * r.value:.1f}", "interval": interval})
        name = look.line_name(method, evaluator)
        of = max(r.num_pretrainings for r in by.values())
        if of < pretrainings and evaluator != "scratch" and method != "band_statistics":  # these two pretrain nothing
            name += f", {of} pretraining seed{'s' * (of > 1)}"
        out.append({"name": name, "own": method == "fusionx", "cells": cells})
    return {
        "heading": f"{look.METRIC_NAMES.get(metric, metric)} (× 100), {shown.replace('+', ' + ').upper()}",
        "columns": [f"{rows_lib.label_name(x)} ({counts[x]})" for x in labels],
        "rows": out,
    }


def class_table(rows: Sequence[rows_lib.Row], kind: str = "ap") -> dict[str, Any] | None:
    """Per-class results with the most labels, for the template; None where there are none."""
    chosen = [r for r in rows if r.metric.startswith(f"{kind}/") and r.seed == rows_lib.ALL_SEEDS]
    chosen = [r for r in chosen if r.evaluator in ("linear_probe", "scratch", "segment_linear")]
    if not chosen:
        return None
    full = max((r.label for r in chosen), key=lambda x: (not x.endswith("shot"), rows_lib.label_order(x)))
    chosen = [r for r in chosen if r.label == full]
    order = look.in_order(r.method for r in chosen)
    columns = sorted(
        {(r.method, r.evaluator, r.modalities) for r in chosen},
        key=lambda c: (order.index(c[0]), list(look.EVALUATORS).index(c[1]), -c[2].count("+"), c[2]),
    )
    of_scratch = {c[0] for c in columns if c[1] == "scratch"} & {c[0] for c in columns if c[1] != "scratch"}
    names = [m.removeprefix(f"{kind}/") for m in dict.fromkeys(r.metric for r in chosen)]
    value = {(r.method, r.evaluator, r.modalities, r.metric): r.value for r in chosen}
    unscored = {c for r in chosen for c in rows_lib.split_names(r.unscored_classes)}
    half = {(r.method, r.evaluator, r.modalities, r.metric): (r.ci_high - r.ci_low) / 2 for r in chosen}
    lines = []
    for name in names:
        cells = [value.get((*c, f"{kind}/{name}"), float("nan")) for c in columns]
        widths = [half.get((*c, f"{kind}/{name}"), float("nan")) for c in columns]
        text = [
            f"{100 * v:.1f}" + (f" ±{100 * w:.1f}" if w == w else "") if v == v and name not in unscored else "–"
            for v, w in zip(cells, widths)
        ]
        lines.append({"name": name.replace("_", " "), "cells": text})
    what = "Average precision" if kind == "ap" else "Intersection over union"
    return {
        "text": f"{what} (× 100) with {rows_lib.label_name(full)} of the labels. Classes that one sensor alone cannot "
        "tell from another score low there and rise when both are shown.",
        "first": "class",
        "columns": [
            f"{look.look(m).short}{' scratch' * (e == 'scratch' and m in of_scratch)} {s.upper()}"
            for m, e, s in columns
        ],
        "rows": lines,
    }


def class_tables(rows: Sequence[rows_lib.Row]) -> list[dict[str, Any]]:
    """Per-class results of every kind there is, for the template."""
    return [t for kind in ("ap", "iou") if (t := class_table(rows, kind)) is not None]


def notices(contract: Contract, without: str = "") -> list[str]:
    """What readers must know first: simulated data, too few tiles for a claim, or `without` where nothing is judged."""
    out = []
    if contract.simulated:
        out.append(
            "All data on this page are simulated. They compare methods under known difficulties and say nothing about "
            "real land."
        )
    test_tiles = contract.splits.get("test", 0)
    if without:
        out.append(without)
    elif test_tiles < FEW_TEST_TILES:
        out.append(
            f"Too few tiles for a claim: {contract.splits.get('train', 0)} train and {test_tiles} test tiles. Read the "
            "numbers below as a check that everything runs on these data, not as a comparison of methods."
        )
    return out


def make(workdir: str) -> str:
    """Writes `report.html`, `tables.md` and `figures/` in the workdir and returns the page's path.

    Raises:
      InputError: the workdir has no checkpoint, or its data set is gone.
    """
    saved = checkpoint.find(workdir)
    settings_path = os.path.join(workdir, "evaluation.json")
    settings = {}
    if os.path.exists(settings_path):
        try:
            with open(settings_path, encoding="utf-8") as f:
                settings = json.load(f)
        except ValueError as error:
            raise InputError(f"{settings_path} is damaged ({error}); run fusionx evaluate again.") from error
    config = config_lib.from_json(settings.get("config", saved.config))
    dataset = settings.get("dataset", saved.config["dataset"])
    prepared = sets.open_for(config, dataset)
    contract = prepared.contract
    directory = os.path.join(workdir, "figures")
    all_rows = rows_lib.read(os.path.join(workdir, rows_lib.FILE_NAME))
    rows = rows_lib.select(all_rows, dataset=contract.name)

    tasks, claims = [], []
    for task in dict.fromkeys(r.task for r in rows):
        of = rows_lib.select(rows, task=task)
        kind = contract.tasks[task].kind
        main = measure.MAIN_METRICS[kind]
        figure = figures.label_efficiency(of, main, directory, f"label_efficiency_{task}")
        shown_sets = sorted({r.modalities for r in of}, key=lambda m: (-m.count("+"), m))
        metrics = [m for m in look.METRIC_NAMES if any(r.metric == m for r in of)]
        tables = [table(of, m, shown_sets[0]) for m in metrics]
        tables += [table(of, main, s) for s in shown_sets[1:]]
        tasks.append(
            {
                "heading": f"Few labels: {TASK_NAMES[kind]} ({task})",
                "figure": look.embed(figure) if figure else None,
                "alt": f"{look.METRIC_NAMES[main]} against the share of labels for each method",
                "caption": "Lines: mean over label subsets. Bands: 95 % bootstrap intervals over test examples and "
                "subsets, widened for how few subsets there are. At 100 % all subsets are one and the same.",
                "tables": tables,
            }
        )
        claims += compare(of, main)

    nothing = "" if rows else f"No evaluation yet: run fusionx evaluate --workdir={workdir} --dataset={dataset}."
    model = build.make_model(config, saved.contract.modalities)
    fresh = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    ratios = config_lib.mask_ratios(config)
    present = [m for m in config.modalities if m in contract.modalities]
    picture = None
    if len(present) == len(config.modalities) and build.traits(config).reconstructs:
        path = figures.reconstructions(
            model,
            checkpoint.load_params(saved, fresh),
            preprocess.make_normalizer(contract.modalities, weights, patch_size=config.model.patch_size),
            prepared,
            weights,
            config.masking,
            config.masking_options.to_dict(),
            ratios,
            directory,
        )
        level = (
            "each hidden patch takes its mean and contrast from the true one (the target is normalized)"
            if config.target == "normalized"
            else "hidden patches are pure predictions"
        )
        picture = {
            "figure": look.embed(path),
            "caption": f"Left to right: true, masked, rebuilt; {level}. Gray: no data.",
        }

    metrics_csv = os.path.join(workdir, "metrics.csv")
    training = figures.loss_curves(metrics_csv, directory, contract.simulated) if os.path.exists(metrics_csv) else None
    distribution = survey_page.class_distribution([contract], directory)
    values = {
        "title": f"{look.look(config.get('method', 'fusionx')).name} on {contract.name}",
        "subtitle": f"{config.model.size} network, {config.masking} masking, step {saved.step}; "
        f"{', '.join(f'{contract.splits[s]} {s}' for s in _SPLITS if s in contract.splits)} tiles of "
        + ", ".join(f"{n} ({m.level}, {len(m.bands)} bands)" for n, m in contract.modalities.items()),
        "notices": notices(contract, nothing),
        "claims": claims,
        "tasks": tasks,
        "classes": class_tables(rows),
        "reconstructions": picture,
        "training": look.embed(training) if training else None,
        "distribution": look.embed(distribution) if distribution else None,
        "data_text": f"{contract.source_version}. Splits: {contract.split_origin}. License: {contract.license}. "
        f"{contract.citation} {' '.join(contract.notes)}",
        "protocol": _protocol(rows, config, saved),
        "commands": _commands(workdir, dataset),
        "config": json.dumps(config_lib.to_json(config), indent=1, sort_keys=True),
        "contract": contract.to_json(),
    }
    look.write(os.path.join(workdir, "tables.md"), "tables.md", **values)
    return look.write(os.path.join(workdir, "report.html"), "run.html", **values)


def _protocol(rows: Sequence[rows_lib.Row], config, saved: checkpoint.Saved) -> list[str]:
    lines = [f"Checkpoint: step {saved.step}, {config.batch_size} pairs a step, seed {config.seed}."]
    whole = [r for r in rows if r.seed == rows_lib.ALL_SEEDS]
    for method, evaluator in look.lines_of(whole):
        of = [r for r in whole if (r.method, r.evaluator) == (method, evaluator)]
        how = "; ".join(dict.fromkeys(r.protocol for r in of))
        seeds = sorted({r.num_seeds for r in of if r.label_fraction < 1})
        lines.append(
            f"{look.line_name(method, evaluator)}: {how}; {', '.join(map(str, seeds))} label subset(s) below 100 %."
        )
    if rows:
        lines.append(
            f"Pooling of patch tokens: {config.evaluate.pooling}, per sensor, side by side. Features are standardized "
            "on the unlabeled training split. Intervals: 95 %, bootstrap over test examples and label subsets."
        )
        absent = {
            (r.task, r.label): r.absent_classes for r in rows if r.absent_classes and r.seed == rows_lib.ALL_SEEDS
        }
        for (task, label), classes in sorted(absent.items()):
            names = ", ".join(rows_lib.split_names(classes))
            lines.append(f"Task {task} at {rows_lib.label_name(label)}: some subset has no example of {names}.")
        unscored = {c for r in rows for c in rows_lib.split_names(r.unscored_classes)}
        if unscored:
            lines.append(f"Not scored, for lack of test tiles with and without them: {', '.join(sorted(unscored))}.")
    return lines


def _commands(workdir: str, dataset: str) -> str:
    w, d = shlex.quote(short(workdir)), shlex.quote(short(dataset))
    return "\n".join(
        [
            f"fusionx pretrain --config=CONFIG --workdir={w}   # values below under Configuration",
            f"fusionx evaluate --workdir={w} --dataset={d}",
            f"fusionx report --workdir={w}",
        ]
    )


def short(path: str) -> str:
    """A path relative to the current folder where it lies inside it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
