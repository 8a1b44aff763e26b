"""`fusionx report`: tables, figures and one self-contained HTML page of a workdir."""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from fusionx_jax import checkpoint, preprocess, progress, tiles
from fusionx_jax import config as config_lib
from fusionx_jax.contract import InputError
from fusionx_jax.evaluate import results
from fusionx_jax.models import build
from fusionx_jax.report import figures, style, survey_page

FEW_TEST_TILES = 500  # below this the page says that it carries no claim
_SPLITS = ("train", "val", "test")
_TASK_NAMES = {"multi": "several classes a tile", "single": "one class a tile"}
_MAIN_METRIC = {"multi": "macro_map", "single": "top1"}


def compare(rows: Sequence[results.Row], metric: str) -> list[str]:
    """Sentences on FusionX-Net against each floor: where it leads, ties (intervals overlap) or trails."""
    chosen = [r for r in rows if r.metric == metric and r.seed == results.ALL_SEEDS and _is_cv(r)]
    own = {(r.modalities, r.label_fraction): r for r in chosen if r.method == "fusionx"}
    shown = max((m for m, _ in own), key=lambda m: m.count("+"), default=None)
    name = style.METRIC_NAMES.get(metric, metric)
    sentences = []
    for floor in [m for m in style.METHOD_NAMES if m != "fusionx"]:
        parts: dict[str, list[str]] = {}
        for r in sorted(
            (r for r in chosen if r.method == floor and r.modalities == shown), key=lambda r: r.label_fraction
        ):
            mine = own.get((shown, r.label_fraction))
            if mine is None:
                continue
            if mine.ci_low > r.ci_high:
                verdict = "leads clearly (95 % intervals apart)"
            elif mine.ci_high < r.ci_low:
                verdict = "trails clearly (95 % intervals apart)"
            else:
                verdict = f"{'leads' if mine.value > r.value else 'trails'} within overlapping intervals"
            gap = f"{100 * r.label_fraction:g} % ({100 * (mine.value - r.value):+.1f} points)"
            parts.setdefault(verdict, []).append(gap)
        if parts:
            text = "; ".join(f"{verdict} at {', '.join(gaps)}" for verdict, gaps in parts.items())
            sentences.append(f"{name}, FusionX-Net against {style.METHOD_NAMES[floor]}: {text}.")
    return sentences


def _is_cv(row: results.Row) -> bool:
    return "strength by validation" not in row.protocol


def _table(rows: Sequence[results.Row], metric: str, shown: str) -> dict[str, Any]:
    chosen = [r for r in rows if (r.metric, r.modalities, r.seed) == (metric, shown, results.ALL_SEEDS)]
    fractions = sorted({r.label_fraction for r in chosen})
    counts = {r.label_fraction: r.num_labels for r in chosen}
    out = []
    for method in style.METHOD_NAMES:
        for cv in (True, False):
            by = {r.label_fraction: r for r in chosen if r.method == method and _is_cv(r) == cv}
            if not by:
                continue
            cells = []
            for f in fractions:
                r = by.get(f)
                if r is None:
                    cells.append({"value": "–", "interval": ""})
                    continue
                seeds = (
                    ""
                    if r.num_seeds == max(x.num_seeds for x in chosen)
                    else f", {r.num_seeds} seed{'s' * (r.num_seeds > 1)}"
                )
                interval = f"{100 * r.ci_low:.1f}–{100 * r.ci_high:.1f}{seeds}" if r.ci_low == r.ci_low else ""
                cells.append({"value": f"{100 * r.value:.1f}", "interval": interval})
            name = style.METHOD_NAMES[method] + ("" if cv else ", strength chosen on validation labels")
            out.append({"name": name, "own": method == "fusionx", "cells": cells})
    return {
        "heading": f"{style.METRIC_NAMES.get(metric, metric)} (× 100), {shown.replace('+', ' + ').upper()}",
        "columns": [f"{100 * f:g} % ({counts[f]})" for f in fractions],
        "rows": out,
    }


def _class_table(rows: Sequence[results.Row]) -> dict[str, Any] | None:
    chosen = [r for r in rows if r.metric.startswith("ap/") and r.seed == results.ALL_SEEDS and _is_cv(r)]
    if not chosen:
        return None
    full = max(r.label_fraction for r in chosen)
    chosen = [r for r in chosen if r.label_fraction == full]
    columns = sorted(
        {(r.method, r.modalities) for r in chosen},
        key=lambda c: (list(style.METHOD_NAMES).index(c[0]), -c[1].count("+"), c[1]),
    )
    names = [m.removeprefix("ap/") for m in dict.fromkeys(r.metric for r in chosen)]
    value = {(r.method, r.modalities, r.metric): r.value for r in chosen}
    unscored = {c for r in chosen for c in results.split_names(r.unscored_classes)}
    half = {(r.method, r.modalities, r.metric): (r.ci_high - r.ci_low) / 2 for r in chosen}
    table = []
    for name in names:
        cells = [value.get((*c, f"ap/{name}"), float("nan")) for c in columns]
        widths = [half.get((*c, f"ap/{name}"), float("nan")) for c in columns]
        text = [
            f"{100 * v:.1f}" + (f" ±{100 * w:.1f}" if w == w else "") if v == v and name not in unscored else "–"
            for v, w in zip(cells, widths)
        ]
        table.append({"name": name.replace("_", " "), "cells": text})
    short = {"fusionx": "FusionX-Net", "untrained": "untrained", "band_statistics": "bands", "supervised": "scratch"}
    return {
        "text": f"Average precision (× 100) with {100 * full:g} % of the labels. Classes that one sensor alone "
        "cannot tell from another score low there and rise when both are shown.",
        "columns": [f"{short[m]} {s.upper()}" for m, s in columns],
        "rows": table,
    }


def make(workdir: str) -> str:
    """Writes `report.html` and `figures/` in the workdir and returns the page's path.

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
    prepared = tiles.open_sets(dataset, config.get("dataset_weights", ()))
    contract = prepared.contract
    directory = os.path.join(workdir, "figures")
    all_rows = results.read(os.path.join(workdir, results.FILE_NAME))
    rows = results.select(all_rows, dataset=contract.name)

    tasks, claims = [], []
    for task in dict.fromkeys(r.task for r in rows):
        of = results.select(rows, task=task)
        kind = contract.tasks[task].kind
        main = _MAIN_METRIC[kind]
        figure = figures.label_efficiency(of, main, directory, f"label_efficiency_{task}")
        shown_sets = sorted({r.modalities for r in of}, key=lambda m: (-m.count("+"), m))
        metrics = [m for m in style.METRIC_NAMES if any(r.metric == m for r in of)]
        tables = [_table(of, m, shown_sets[0]) for m in metrics]
        tables += [_table(of, main, s) for s in shown_sets[1:]]
        tasks.append(
            {
                "heading": f"Few labels: {_TASK_NAMES[kind]} ({task})",
                "figure": style.embed(figure),
                "alt": f"{style.METRIC_NAMES[main]} against the share of labels for each method",
                "caption": "Lines: mean over label subsets. Bands: 95 % bootstrap intervals over test examples and "
                "subsets. At 100 % all subsets are one and the same.",
                "tables": tables,
            }
        )
        claims += compare(of, main)

    notices = []
    if contract.simulated:
        notices.append(
            "All data on this page are simulated. They compare methods under known difficulties and say nothing about "
            "real land."
        )
    test_tiles = contract.splits.get("test", 0)
    if rows and test_tiles < FEW_TEST_TILES:
        notices.append(
            f"Too few tiles for a claim: {contract.splits.get('train', 0)} train and {test_tiles} test tiles. Read the "
            "numbers below as a check that everything runs on these data, not as a comparison of methods."
        )
    if not rows:
        notices.append(f"No evaluation yet: run fusionx evaluate --workdir={workdir} --dataset={dataset}.")

    model = build.make_model(config, saved.contract.modalities)
    fresh = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    ratios = config_lib.mask_ratios(config)
    present = [m for m in config.modalities if m in contract.modalities]
    picture = None
    if len(present) == len(config.modalities):
        path = figures.reconstructions(
            model,
            checkpoint.load_params(saved, fresh),
            preprocess.make_normaliser(contract.modalities, weights, patch_size=config.model.patch_size),
            prepared,
            weights,
            config.masking,
            ratios,
            directory,
        )
        level = (
            "each hidden patch takes its mean and contrast from the true one (the target is normalised)"
            if config.target == "normalised"
            else "hidden patches are pure predictions"
        )
        picture = {
            "figure": style.embed(path),
            "caption": f"Left to right: true, masked, rebuilt; {level}. Grey: no data.",
        }

    metrics_csv = os.path.join(workdir, "metrics.csv")
    training = figures.loss_curves(metrics_csv, directory, contract.simulated) if os.path.exists(metrics_csv) else None
    distribution = survey_page.class_distribution([contract], directory)
    html = style.render(
        "run.html",
        title=f"FusionX-Net on {contract.name}",
        subtitle=f"{config.model.size} network, {config.masking} masking, step {saved.step}; "
        f"{', '.join(f'{contract.splits[s]} {s}' for s in _SPLITS if s in contract.splits)} tiles of "
        + ", ".join(f"{n} ({m.level}, {len(m.bands)} bands)" for n, m in contract.modalities.items()),
        notices=notices,
        claims=claims,
        tasks=tasks,
        classes=_class_table(rows),
        reconstructions=picture,
        training=style.embed(training) if training else None,
        distribution=style.embed(distribution) if distribution else None,
        data_text=f"{contract.source_version}. Splits: {contract.split_origin}. Licence: {contract.licence}. "
        f"{contract.citation} {' '.join(contract.notes)}",
        protocol=_protocol(rows, config, saved),
        commands=_commands(workdir, dataset),
        config=json.dumps(config_lib.to_json(config), indent=1, sort_keys=True),
        contract=contract.to_json(),
    )
    page = os.path.join(workdir, "report.html")
    style.write_page(page, html)
    return page


def _protocol(rows: Sequence[results.Row], config, saved: checkpoint.Saved) -> list[str]:
    lines = [f"Checkpoint: step {saved.step}, {config.batch_size} pairs a step, seed {config.seed}."]
    for method in style.METHOD_NAMES:
        of = [r for r in rows if r.method == method and r.seed == results.ALL_SEEDS]
        if of:
            how = "; ".join(dict.fromkeys(r.protocol for r in of))
            seeds = sorted({r.num_seeds for r in of if r.label_fraction < 1})
            lines.append(
                f"{style.METHOD_NAMES[method]}: {how}; {', '.join(map(str, seeds))} label subset(s) below 100 %."
            )
    if rows:
        lines.append(
            f"Pooling of patch tokens: {config.evaluate.pooling}, per sensor, side by side. Features are standardised "
            "on the unlabelled training split. Intervals: 95 %, bootstrap over test examples and label subsets."
        )
        absent = {
            (r.task, r.label_fraction): r.absent_classes
            for r in rows
            if r.absent_classes and r.seed == results.ALL_SEEDS
        }
        for (task, fraction), classes in sorted(absent.items()):
            names = ", ".join(results.split_names(classes))
            lines.append(f"Task {task} at {100 * fraction:g} %: some subset has no example of {names}.")
        unscored = {c for r in rows for c in results.split_names(r.unscored_classes)}
        if unscored:
            lines.append(f"Not scored, for lack of test tiles with and without them: {', '.join(sorted(unscored))}.")
    return lines


def _commands(workdir: str, dataset: str) -> str:
    w, d = shlex.quote(_short(workdir)), shlex.quote(_short(dataset))
    return "\n".join(
        [
            f"fusionx pretrain --config=CONFIG --workdir={w}   # values below under Configuration",
            f"fusionx evaluate --workdir={w} --dataset={d}",
            f"fusionx report --workdir={w}",
        ]
    )


def _short(path: str) -> str:
    """A path relative to the current folder where it lies inside it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx report", description="Writes report.html and figures/ into a workdir, from what is there."
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`")
    args, rest = parser.parse_known_args(argv)
    if rest:
        raise InputError(f"The argument {rest[0]!r} is not understood by `fusionx report`; see its --help.")
    page = make(args.workdir)
    progress.logger.info("Open %s in a browser; its figures are in %s.", page, os.path.join(args.workdir, "figures"))
    print(page)
    return 0
