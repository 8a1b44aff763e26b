"""The page of a comparison of methods: Fig. 3, tables, paired differences, ablations, cost."""

import csv
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fusionx_jax import checkpoint, preprocess
from fusionx_jax import config as config_lib
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import compare, features, measure
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.models import build
from fusionx_jax.prepared import order, sets
from fusionx_jax.report import figures, look, run_page

_EMBEDDED = 1000  # tiles in the picture of features


def make(workdir: str) -> str:
    """Writes `report.html`, `tables.md` and `figures/` into a comparison's workdir and returns the page's path.

    Raises:
      InputError: the folder is no comparison, or its data set is gone.
    """
    settings = compare.read_settings(workdir)
    found = compare.write_tables(workdir)
    if not found:
        raise InputError(f"No run of the comparison in {workdir} has finished; run its command again, then report.")
    prepared = sets.open_sets(settings["dataset"])
    contract = prepared.contract
    directory = os.path.join(workdir, "figures")
    rows = rows_lib.read(os.path.join(workdir, rows_lib.FILE_NAME))
    main = [r for r in rows if "/" not in r.method]
    gaps = _read(workdir, "differences.csv")

    tasks = []
    for task in dict.fromkeys(r.task for r in main):
        of = rows_lib.select(main, task=task)
        metric = measure.MAIN_METRICS[contract.tasks[task].kind]
        shown_sets = sorted({r.modalities for r in of}, key=lambda m: (-m.count("+"), m))
        shown_sets = [s for s in shown_sets if "zeros" not in s] + [s for s in shown_sets if "zeros" in s]
        drawn = [r for r in of if r.evaluator in ("linear_probe", "scratch", "finetune", "segment_linear")]
        figure = figures.label_efficiency(
            drawn, metric, directory, f"label_efficiency_{task}", [s for s in shown_sets if "zeros" not in s]
        )
        names = [m for m in look.METRIC_NAMES if any(r.metric == m for r in of)]
        tables = [run_page.table(of, m, shown_sets[0]) for m in names]
        tables += [run_page.table(of, metric, s) for s in shown_sets[1:]]
        tasks.append(
            {
                "heading": f"Few labels: {run_page.TASK_NAMES[contract.tasks[task].kind]} ({task})",
                "figure": look.embed(figure) if figure else None,
                "caption": "Lines: mean over pretraining seeds and label subsets. Bands: 95 % bootstrap intervals over "
                f"{_split(of)} tiles, pretraining seeds and label subsets.",
                "tables": tables,
                "gaps": _gap_table([g for g in gaps if g["task"] == task and "/" not in g["method"]], shown_sets[0]),
            }
        )
    pictures = _pictures(workdir, found, prepared, directory)
    seeds = {len(v) for v in found.values()}
    values = {
        "title": f"Methods compared on {contract.name}",
        "subtitle": f"{len({m for m in found if '/' not in m})} methods, {min(seeds)} to {max(seeds)} pretraining "
        "seeds; " + ", ".join(f"{n} {s}" for s, n in contract.splits.items()) + " tiles",
        "notices": run_page.notices(contract),
        "claims": _verdicts(gaps),
        "tasks": tasks,
        "ablation": _ablation(rows, _read(workdir, "ablations.csv")),
        "needed": _needed(_read(workdir, "labels_needed.csv")),
        "cost": _cost(_read(workdir, "methods.csv")),
        "classes": run_page.class_tables([r for r in main if r.modalities == _widest(main)]),
        "pictures": pictures,
        "protocol": _protocol(main),
        "command": _commands(settings, workdir),
        "contract": contract.to_json(),
    }
    look.write(os.path.join(workdir, "tables.md"), "tables.md", **values)
    return look.write(os.path.join(workdir, "report.html"), "comparison.html", **values)


def _commands(settings: Mapping[str, Any], workdir: str) -> str:
    """What was typed, one command a line."""
    places = [f"--workdir={run_page.short(workdir)}", f"--dataset={run_page.short(settings['dataset'])}"]
    typed = [shlex.join([*command, *places]) for command in settings["commands"]]
    return "\n".join([*(f"python -m experiments.label_sweep {t}" for t in typed), f"fusionx report {places[0]}"])


def _read(workdir: str, name: str) -> list[dict[str, str]]:
    path = os.path.join(workdir, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def _split(rows: Sequence[rows_lib.Row]) -> str:
    return "validation" if any("scored on val" in r.protocol for r in rows) else "test"


def _widest(rows: Sequence[rows_lib.Row]) -> str:
    """The set of modalities with most of them."""
    return max((r.modalities for r in rows), key=lambda m: m.count("+"), default="")


def _verdicts(gaps: Sequence[dict[str, str]]) -> list[str]:
    """One sentence a method: where FusionX-Net wins, ties and loses by the paired interval."""
    out = []
    judges = ("linear_probe", measure.EACH, "scratch", "finetune")
    chosen = [g for g in gaps if "/" not in g["method"] and g["evaluator"] in judges]
    widest = max((g["modalities"] for g in chosen), key=lambda m: m.count("+"), default="")
    for key in dict.fromkeys((g["metric"], g["method"], g["evaluator"]) for g in chosen if g["modalities"] == widest):
        parts: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
        alone = False
        for g in chosen:
            if (g["metric"], g["method"], g["evaluator"]) == key and g["modalities"] == widest:
                alone |= g["fusionx_pretrainings"] == "1"
                gap = 100 * float(g["fusionx_minus_method"])
                parts[g["fusionx"]].append(f"{rows_lib.label_name(g['label'])} ({gap:+.1f})")
        text = "; ".join(f"{verdict} at {', '.join(where)}" for verdict, where in parts.items() if where)
        if alone:
            text += " (one pretraining: these intervals know nothing of other seeds)"
        name = look.METRIC_NAMES.get(key[0], key[0])
        out.append(f"{name}, FusionX-Net against {look.line_name(*key[1:])}: {text}.")
    return out


def _gap_table(gaps: Sequence[dict[str, str]], shown: str) -> dict[str, Any] | None:
    """Paired differences by method and label."""
    chosen = [g for g in gaps if g["modalities"] == shown]
    if not chosen:
        return None
    labels = sorted({g["label"] for g in chosen}, key=rows_lib.label_order)
    lines = []
    pairs = {(g["method"], g["evaluator"]) for g in chosen}
    for method in look.in_order(m for m, _ in pairs):
        for evaluator in [e for e in look.EVALUATORS if (method, e) in pairs]:
            by = {g["label"]: g for g in chosen if (g["method"], g["evaluator"]) == (method, evaluator)}
            cells = []
            for label in labels:
                g = by.get(label)
                if g is None:
                    cells.append(run_page.EMPTY_CELL)
                    continue
                value, low, high = (100 * float(g[k]) for k in ("fusionx_minus_method", "ci_low", "ci_high"))
                cells.append({"value": f"{value:+.1f}", "interval": f"{low:+.1f} to {high:+.1f}, {g['fusionx']}"})
            lines.append({"name": look.line_name(method, evaluator), "own": False, "cells": cells})
    metric = look.METRIC_NAMES.get(chosen[0]["metric"], chosen[0]["metric"])
    return {
        "heading": f"FusionX-Net less each method, paired: {metric} (points), {shown.replace('+', ' + ').upper()}",
        "columns": [rows_lib.label_name(x) for x in labels],
        "rows": lines,
    }


def _ablation(rows: Sequence[rows_lib.Row], gaps: Sequence[dict[str, str]]) -> dict[str, Any] | None:
    """Variants of a method (names with changes after slashes) under the method itself, with their paired difference
    from it where the same pretraining seeds of it are there."""
    variants = [r for r in rows if "/" in r.method and r.seed == rows_lib.ALL_SEEDS and r.evaluator == "linear_probe"]
    variants = [r for r in variants if r.metric in measure.MAIN_METRICS.values()]
    if not variants:
        return None
    shown, task, metric = _widest(variants), variants[0].task, variants[0].metric
    variants = [r for r in variants if (r.modalities, r.task) == (shown, task)]
    labels = sorted({r.label for r in variants}, key=rows_lib.label_order)
    chosen = [g for g in gaps if (g["modalities"], g["task"], g["evaluator"]) == (shown, task, "linear_probe")]
    paired = {(f"{g['method']}/{g['changes']}", g["label"]): g for g in chosen}
    plain = {(g["method"], g["label"]): g for g in reversed(chosen)}
    lines = []
    for base in look.in_order({r.method.split("/")[0] for r in variants}):
        if any(m == base for m, _ in plain):
            cells = [
                {"value": f"{100 * float(plain[base, x]['of_method']):.1f}", "interval": ""}
                if (base, x) in plain
                else run_page.EMPTY_CELL
                for x in labels
            ]
            seeds = next(g["pretrainings"] for g in chosen if g["method"] == base)
            name = f"{look.look(base).name}, {seeds} pretraining seed{'s' * (seeds != '1')}"
            lines.append({"name": name, "own": True, "cells": cells})
        for method in dict.fromkeys(r.method for r in variants if r.method.split("/")[0] == base):
            by = {r.label: r for r in variants if r.method == method}
            cells = [_ablated(by[x], paired.get((method, x))) if x in by else run_page.EMPTY_CELL for x in labels]
            changes = method.partition("/")[2].replace("/", ", ").replace("model.", "")
            lines.append({"name": f"{look.look(base).short}: {changes}", "own": False, "cells": cells})
    return {
        "heading": f"{look.METRIC_NAMES[metric]} (× 100), {shown.replace('+', ' + ').upper()}; small: less the method "
        "itself with the same pretraining seeds, paired",
        "columns": [rows_lib.label_name(x) for x in labels],
        "rows": lines,
    }


def _ablated(row: rows_lib.Row, gap: dict[str, str] | None) -> dict[str, str]:
    interval = f"{100 * row.ci_low:.1f}–{100 * row.ci_high:.1f}"
    if gap is not None:
        less, low, high = (100 * float(gap[k]) for k in ("variant_minus_method", "ci_low", "ci_high"))
        interval = f"{less:+.1f}: {low:+.1f} to {high:+.1f}"
    return {"value": f"{100 * row.value:.1f}", "interval": interval}


def _needed(table: Sequence[dict[str, str]]) -> dict[str, Any] | None:
    """Labels each method needs to match the networks trained from scratch on all labels."""
    chosen = [t for t in table if "/" not in t["method"] and "+" in t["modalities"]]
    if not chosen:
        return None
    rivals = list(dict.fromkeys((t["to_match"], t["metric"], t["target"]) for t in chosen))
    lines = []
    pairs = {(t["method"], t["evaluator"]) for t in chosen}
    for key in [(m, e) for m in look.in_order(m for m, _ in pairs) for e in look.EVALUATORS if (m, e) in pairs]:
        cells = []
        for rival in rivals:
            of = [
                t for t in chosen if (t["method"], t["evaluator"]) == key and (t["to_match"], t["metric"]) == rival[:2]
            ]
            cells.append(_needed_cell(of[0]) if of else run_page.EMPTY_CELL)
        lines.append({"name": look.line_name(*key), "own": key[0] == "fusionx", "cells": cells})
    return {
        "columns": [f"{look.look(r).short}, {look.METRIC_NAMES.get(m, m)} {100 * float(t):.1f}" for r, m, t in rivals],
        "rows": lines,
    }


def _needed_cell(t: dict[str, str]) -> dict[str, str]:
    least = float(t["least_tried"])

    def say(text: str) -> str:
        number = float(text)
        if not np.isfinite(number):
            return "never"
        return f"≤ {least:.0f}" if number <= least else f"{number:.0f}"

    return {"value": say(t["labels"]), "interval": f"{say(t['ci_low'])} to {say(t['ci_high'])}"}


def _cost(table: Sequence[dict[str, str]]) -> dict[str, Any]:
    def number(text: str, scale: float | int, digits: int) -> str:
        return f"{float(text) / scale:.{digits}f}" if text else "–"

    lines = [
        {
            "name": look.look(t["method"]).name,
            "cells": [
                t["pretrainings"], number(t["parameters"], 1e6, 2), number(t["encoder_parameters"], 1e6, 2),
                number(t["flops_per_pair"], 1e6, 0), number(t["pairs_per_s"], 1, 0), t["num_steps"],
                t["learning_rate"] or "–",
            ],
        }
        for t in table
        if "/" not in t["method"]
    ]  # fmt: skip
    return {
        "first": "method",
        "columns": [
            "seeds", "parameters (M)", "of them encoder (M)", "MFLOP a pair and step", "pairs/s", "steps",
            "rate per 256",
        ],
        "rows": lines,
    }  # fmt: skip


def _protocol(rows: Sequence[rows_lib.Row]) -> list[str]:
    lines = []
    whole = [r for r in rows if r.seed == rows_lib.ALL_SEEDS]
    for method, evaluator in look.lines_of(whole):
        of = [r for r in whole if (r.method, r.evaluator) == (method, evaluator)]
        how = "; ".join(dict.fromkeys(r.protocol for r in of))
        seeds = sorted({r.num_seeds for r in of if r.label_fraction < 1})
        pretrainings = max(r.num_pretrainings for r in of)
        lines.append(
            f"{look.line_name(method, evaluator)}: {how}; {pretrainings} pretraining seed(s), "
            f"{', '.join(map(str, seeds))} label subset(s) below 100 %, pooling {of[0].pooling or 'none'}."
        )
    return lines


class _Network(NamedTuple):
    """A pretraining's network, with its weights, a data set as it reads it and that set's normalization for them."""

    config: Any
    prepared: sets.Readable
    saved: checkpoint.Saved
    model: Any
    params: Any
    normalizer: preprocess.Normalizer


def _network(place: str, dataset: str) -> _Network:
    saved = checkpoint.find(place)
    config = config_lib.from_json(saved.config)
    prepared = sets.open_sets(dataset, (), dict(config.get("band_groups", {})))
    model = build.make_model(config, saved.contract.modalities)
    params = checkpoint.load_params(saved, jax.eval_shape(lambda: build.init_params(model, jax.random.key(0))))
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    normalizer = preprocess.make_normalizer(prepared.contract.modalities, weights, patch_size=config.model.patch_size)
    return _Network(config, prepared, saved, model, params, normalizer)


def _first(workdir: str, found: Mapping[str, Sequence[compare.Member]], method: str) -> str:
    """The workdir of a method's first finished pretraining."""
    return compare.place(workdir, method, found[method][0].about["seed"])


def _pictures(workdir, found, prepared, directory) -> list[dict[str, str]]:
    """Features, confusions and reconstructions of the first pretraining, as far as they can be had."""
    out = []
    task = next((n for n, t in prepared.contract.tasks.items() if t.kind == "single"), None)
    if task is not None:
        out += _class_pictures(workdir, found, prepared, task, directory)
    if compare.REFERENCE not in found:
        return out
    network = _network(_first(workdir, found, compare.REFERENCE), prepared.directory)
    weights = {m: network.saved.contract.modalities[m] for m in network.config.modalities}
    rebuilt = figures.reconstructions(
        network.model, network.params, network.normalizer, network.prepared, weights,
        network.config.masking, network.config.masking_options.to_dict(),
        config_lib.mask_ratios(network.config), directory,
    )  # fmt: skip
    out.append({"figure": look.embed(rebuilt), "heading": "Reconstructions", "caption": "True, masked, rebuilt."})
    crossed = figures.cross_predictions(
        network.model, network.params, network.normalizer, network.prepared, weights, directory
    )
    if crossed:
        out.append(
            {
                "figure": look.embed(crossed), "heading": "One sensor from the other",
                "caption": "FusionX-Net predicts each sensor from the other alone, all of which it sees; it was "
                "trained on masked tiles only.",
            }
        )  # fmt: skip
    return out


def _class_pictures(workdir, found, prepared, task, directory) -> list[dict[str, str]]:
    out = []
    classes = prepared.contract.tasks[task].classes
    methods = [m for m in ("fusionx", "croma", "untrained") if m in found]
    counts, points = {}, {}
    size = prepared.size("test")
    index = order.spread(size, _EMBEDDED)
    for method in methods:
        place = _first(workdir, found, method)
        network = _network(place, prepared.directory)
        shown = "+".join(m for m in network.config.modalities if m in network.prepared.contract.modalities)
        cells = found[method][0].cells.get((method, shown, task, "linear_probe"), {})
        cell = cells.get(("1", 0))
        if cell is not None and cell.confusion:
            counts[method] = np.array(cell.confusion)
        encoder = encoder_lib.Encoder(network.model, {"encoder": network.params["encoder"]}, network.normalizer)
        pools = features.extract(
            encoder,
            network.prepared,
            "test",
            shown.split("+"),
            256,
            os.path.join(place, "features"),
            f"{method} features",
        )
        points[method] = encoder_lib.assemble(pools, "mean_std")[index]
    if points:
        labels = prepared.read("test", index, [prepared.contract.tasks[task].feature])[
            prepared.contract.tasks[task].feature
        ]
        title = f"{prepared.contract.title}: t-SNE of {len(index)} test tiles' features, all sensors"
        path = figures.embedding(points, labels, classes, title, directory)
        out.append({"figure": look.embed(path), "heading": "Features", "caption": "Colored by a tile's class."})
    if counts:
        title = f"{prepared.contract.title}: linear probe with all labels, all sensors"
        path = figures.confusion(counts, classes, title, directory)
        out.append(
            {"figure": look.embed(path), "heading": "Confusion", "caption": "Shares of each true class, in percent."}
        )
    return out
