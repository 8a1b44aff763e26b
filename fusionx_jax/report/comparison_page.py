"""The page of a comparison of methods: label-efficiency curves, tables, paired differences, ablations, cost."""

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import files
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import compare, members, metrics, rows
from fusionx_jax.evaluate.cells import Cells
from fusionx_jax.evaluate.evaluation import open_evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.members import Member
from fusionx_jax.evaluate.records import Group, Method
from fusionx_jax.evaluate.rows import Row
from fusionx_jax.evaluate.sources import method_source
from fusionx_jax.prepared import order, sets
from fusionx_jax.report import figures, look, pictures, sections, sentences, tables
from fusionx_jax.report.look import Picture
from fusionx_jax.report.sections import Section

_EMBEDDED_TILES = 1000  # in the figure of features: t-SNE takes seconds for them
_PICTURED_METHODS = 4  # in the figures of features and confusions


class _Comparison(NamedTuple):
    """What the page is made from. `rows` are those of methods, `variant_rows` those of their variants."""

    workdir: str
    sweep: members.Sweep
    members: dict[Method, list[Member]]
    prepared: sets.Readable
    rows: list[Row]
    variant_rows: list[Row]
    differences: list[compare.Difference]

    @property
    def reference(self) -> Method:
        return compare.REFERENCE

    @property
    def figures(self) -> str:
        return files.join(self.workdir, sections.FIGURES)


def make(workdir: str) -> str:
    """Writes `report.html`, `tables.md` and `figures/` into a comparison's workdir and returns the page's path.

    Raises:
      InputError: the folder is no comparison, its data set is missing, or a row's evaluator or metric is not
        registered.
    """
    comparison = _read(workdir)
    contract = comparison.prepared.contract
    values = {
        "title": f"Methods compared on {contract.name}",
        "subtitle": _subtitle(comparison),
        "notices": sentences.notices(contract, sections.score_split(comparison.rows)),
        "findings": sentences.findings(comparison.differences, comparison.reference),
        "findings_note": sentences.comparison_note(comparison.differences),
        "sections": [
            *sections.task_sections(comparison.rows, comparison.differences, comparison.reference, comparison.figures),
            *_ablations(comparison),
            *_over_steps(comparison),
            *_labels_needed(comparison),
            *sections.class_section(_fullest(comparison.rows)),
            *_class_pictures(comparison),
            *_tile_pictures(comparison),
            _cost(comparison),
        ],
        "data_text": sections.data_text(contract),
        "protocol": sentences.protocol(comparison.rows),
        "commands": _commands(comparison),
        "contract": contract.to_json(),
    }
    look.write(files.join(workdir, sections.TABLES), "tables.md", **values)
    return look.write(files.join(workdir, sections.PAGE), "comparison.html", **values)


def _read(workdir: str) -> _Comparison:
    sweep = members.read_sweep(workdir)
    finished = members.write_tables(workdir)
    if not finished:
        raise InputError(f"No run of the comparison in {workdir} has finished; run its command again, then report.")
    results = rows.read(files.join(workdir, rows.FILE_NAME))
    return _Comparison(
        workdir, sweep, finished, sets.open_sets(sweep.dataset),
        [r for r in results if not r.changes], [r for r in results if r.changes],
        rows.read_table(files.join(workdir, "differences.csv"), compare.Difference),
    )  # fmt: skip


def _subtitle(comparison: _Comparison) -> str:
    methods = [m for m in comparison.members if not m.changes]
    variants = len(comparison.members) - len(methods)
    seeds = sorted({len(m) for m in comparison.members.values()})
    tiles = ", ".join(f"{n} {s}" for s, n in comparison.prepared.contract.splits.items())
    counts = tables.count("method", len(methods)) + (f" and {tables.count('variant', variants)}" if variants else "")
    span = f"{seeds[0]} to " if seeds[0] < seeds[-1] else ""
    return f"{counts}; {span}{tables.count('pretraining seed', seeds[-1])} each; {tiles} tiles"


def _fullest(records: Sequence[Row]) -> list[Row]:
    """The rows of the fullest modality set."""
    return [r for r in records if r.modality_set == look.sort_modality_sets(records)[0]]


def _ablations(comparison: _Comparison) -> list[Section]:
    path = files.join(comparison.workdir, "ablations.csv")
    found = tables.ablation_tables(comparison.variant_rows, rows.read_table(path, compare.Ablation))
    return [Section("Ablations", [], found)] if found else []


def _over_steps(comparison: _Comparison) -> list[Section]:
    """Figures of each task's main metrics against pretraining steps, where methods were pretrained for several."""
    costs = rows.read_table(files.join(comparison.workdir, "methods.csv"), members.Cost)
    records = _fullest([*comparison.rows, *comparison.variant_rows])
    found = []
    for task in dict.fromkeys(r.task for r in records):
        of_task = rows.select(records, task=task)
        for metric in (m for m in tables.metrics_of(tables.main_rows(of_task)) if m.main):
            path = figures.over_steps(of_task, costs, metric, comparison.figures, f"steps_{task}_{metric.name}")
            if path is not None:
                alt = f"{metric.label} against pretraining steps for each method"
                found.append(Picture(look.embed(path), alt, f"Task {task}. Dotted: without pretraining."))
    return [Section("Accuracy over pretraining steps", found, [])] if found else []


def _labels_needed(comparison: _Comparison) -> list[Section]:
    path = files.join(comparison.workdir, "labels_needed.csv")
    records = [r for r in rows.read_table(path, compare.LabelsNeeded) if not r.changes]
    found = tables.needed_tables(records, comparison.reference)
    return [Section("Labels needed to match a network trained on all labels", [], found)] if found else []


def _cost(comparison: _Comparison) -> Section:
    records = rows.read_table(files.join(comparison.workdir, "methods.csv"), members.Cost)
    return Section("Cost of pretraining", [], [tables.cost_table(records)])


def _commands(comparison: _Comparison) -> str:
    """The commands as they were typed, one a line."""
    workdir, dataset = (sections.short_path(p) for p in (comparison.workdir, comparison.sweep.dataset))
    arguments = [f"--workdir={workdir}", f"--dataset={dataset}"]
    typed = [shlex.join([*command, *arguments]) for command in comparison.sweep.commands]
    return "\n".join([*(f"python -m experiments.label_sweep {t}" for t in typed), f"fusionx report {arguments[0]}"])


def _first(comparison: _Comparison, method: Method) -> str:
    """The workdir of a method's first finished pretraining."""
    return members.weights_workdir(comparison.workdir, method, comparison.members[method][0].about)


def _tile_pictures(comparison: _Comparison) -> list[Section]:
    """Reconstructions of the reference method's first pretraining."""
    if comparison.reference not in comparison.members:
        return []
    network = pictures.load_network(_first(comparison, comparison.reference), comparison.prepared.directory)
    if network is None:
        return []
    path = pictures.reconstructions(network, comparison.figures)
    alt = "True, masked and reconstructed tiles of each modality"
    out = [Section("Reconstructions", [Picture(look.embed(path), alt, "True, masked, reconstructed.")], [])]
    crossed = pictures.cross_predictions(network, comparison.figures)
    if crossed is not None:
        label = look.method_label(comparison.reference)
        caption = f"{label} predicts each modality from all patches of the others; it was trained on masked tiles only."
        alt = "True tiles of each modality, and as predicted from the others"
        out.append(Section("One modality from the others", [Picture(look.embed(crossed), alt, caption)], []))
    return out


def _class_pictures(comparison: _Comparison) -> list[Section]:
    """Features by class and confusions for the first single-label task, of the reference and the best other methods."""
    contract = comparison.prepared.contract
    task = next((name for name, t in contract.tasks.items() if t.kind == "single"), None)
    records = rows.select(_fullest(comparison.rows), task=task) if task is not None else []
    if task is None or not records:
        return []
    chosen = _best_methods(comparison, records)
    return [*_features(comparison, task, chosen, records[0]), *_confusions(comparison, task, chosen, records[0])]


def _best_methods(comparison: _Comparison, records: Sequence[Row]) -> list[Method]:
    """The reference and the methods with the highest scores on one task, of those that figures draw."""
    main = [r for r in tables.main_rows(records) if metrics.find(r.kind, r.metric).main and not r.budget.shots]
    drawn = [r for r in tables.in_figures(main) if not EVALUATORS[r.evaluator].from_scratch]
    most = max((r.label_fraction for r in drawn), default=0)
    best = sorted((r for r in drawn if r.label_fraction == most), key=lambda r: -r.value)
    order_ = [comparison.reference, *(Method(r.method) for r in best)]
    chosen = [m for m in dict.fromkeys(order_) if m in comparison.members]
    return look.sort_methods(chosen[:_PICTURED_METHODS])


def _features(comparison: _Comparison, task: str, methods: Sequence[Method], row: Row) -> list[Section]:
    """t-SNE of the features that linear probes read, of tiles spread over the scored split."""
    prepared = comparison.prepared
    split = row.score_split if row.score_split in prepared.contract.splits else "train"  # with folds all are scored
    index = order.spread(prepared.size(split), _EMBEDDED_TILES)
    features = {}
    for method in methods:
        evaluation = open_evaluation(_first(comparison, method), prepared.directory, [], any_level=True)
        features[method] = method_source(evaluation, method.spec, row.modality_set).features(split)[index]
    if not features:
        return []
    feature, classes = prepared.contract.tasks[task].feature, prepared.contract.tasks[task].classes
    labels = prepared.read(split, index, [feature])[feature]
    title = f"{prepared.contract.title}: t-SNE of features of {len(index)} {split} tiles, {row.modality_set.title}"
    path = figures.embedding(features, labels, classes, title, comparison.figures)
    alt = "Features of each method in two dimensions, colored by class"
    caption = f"Colored by the class of a tile (task {task}). The reference and the methods with the highest scores."
    return [Section("Features", [Picture(look.embed(path), alt, caption)], [])]


def _confusions(comparison: _Comparison, task: str, methods: Sequence[Method], row: Row) -> list[Section]:
    """Confusions with the most labels, by the first evaluator in figures that has them, of the first pretraining."""
    for evaluator in (e for e in EVALUATORS.values() if e.in_figures):
        counts = {}
        for method in methods:
            group = Group(method, row.modality_set, task, evaluator.name)
            matrix = _confusion(comparison.members[method][0].cells.get(group, {}))
            if matrix is not None:
                counts[method] = matrix
        if counts:
            contract = comparison.prepared.contract
            title = f"{contract.title}: {evaluator.label} with the most labels, {row.modality_set.title}"
            path = figures.confusion(counts, contract.tasks[task].classes, title, comparison.figures)
            picture = Picture(look.embed(path), "Confusion matrices", "Shares of each true class, in percent.")
            return [Section("Confusion", [picture], [])]
    return []


def _confusion(cells: Cells) -> np.ndarray | None:
    """The confusion of the first cell with the largest fraction of the labels; None without one."""
    with_counts = [c for c in cells.values() if c.confusion and not c.key.budget.shots]
    if not with_counts:
        return None
    return np.array(max(with_counts, key=lambda c: (c.key.budget.fraction, -c.key.seed)).confusion)
