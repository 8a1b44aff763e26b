"""`fusionx evaluate`: what a representation is worth where labels are few, beside the floors that anyone could have.

Frozen features of the training split feed linear probes over label fractions and seeds; the floors (the same encoder
untrained, per-band statistics, the same network trained from scratch on the labels) go through the same subsets,
strengths and metrics. The test split is read once per reported number.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, files, preprocess, progress, tiles
from fusionx_jax import config as config_lib
from fusionx_jax.contract import InputError, check_compatible, in_band_order
from fusionx_jax.evaluate import features, metrics, probe, results, subsets, supervised
from fusionx_jax.models import build

METHODS = ("fusionx", "untrained", "band_statistics", "supervised")
SETTINGS_FILE = "evaluation.json"


class Setting(NamedTuple):
    """One evaluation: what is judged, on what."""

    config: ConfigDict
    workdir: str
    saved: checkpoint.Saved
    prepared: tiles.PreparedSet
    model: Any
    config_hash: str


class Labels(NamedTuple):
    """A task's labels: 0/1 targets by split, and which classes the test split can score."""

    name: str
    kind: str
    classes: tuple[str, ...]
    targets: dict[str, np.ndarray]
    unscored: str
    ids: list[str]
    groups: np.ndarray | None


def prepare_setting(workdir: str, dataset: str, overrides: list[str]) -> Setting:
    """Loads what an evaluation needs and checks that it fits together.

    Raises:
      InputError: no checkpoint, no data set, or the two do not match.
    """
    saved = checkpoint.find(workdir)
    config = config_lib.override(config_lib.from_json(saved.config), overrides)
    prepared = tiles.PreparedSet(dataset)
    if os.path.abspath(workdir) == saved.path:
        raise InputError(f"{workdir} is a checkpoint; give its workdir, where results can be written.")
    unknown = [m for m in config.modalities if m not in saved.contract.modalities]
    if unknown:
        raise InputError(
            f"modalities names {', '.join(unknown)}, but the weights were trained on "
            f"{', '.join(saved.contract.modalities)}."
        )
    results.read(os.path.join(workdir, results.FILE_NAME))  # rows that cannot be kept are better known now
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    check_compatible(prepared.contract, weights, have_name=dataset, want_name=saved.path)
    statistics = config.evaluate.statistics
    if statistics not in ("checkpoint", "dataset"):
        raise InputError(f"evaluate.statistics is {statistics!r}; it must be 'checkpoint' or 'dataset'.")
    model = build.make_model(config, saved.contract.modalities)
    for name in weights:
        if name in prepared.contract.modalities:
            m = prepared.contract.modalities[name]
            preprocess.check_patch((m.height, m.width), config.model.patch_size, dataset)
    trained = {k: v for k, v in saved.config.items() if k not in ("evaluate", "label_fractions", "dataset")}
    digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:12]
    return Setting(config, workdir, saved, prepared, model, digest)


def normaliser_for(setting: Setting) -> preprocess.Normaliser:
    """Statistics of the checkpoint, or of the data set where the config says so; bands always in the weights' order."""
    weights = {}
    for name in setting.config.modalities:
        own = setting.saved.contract.modalities[name]
        if setting.config.evaluate.statistics == "dataset" and name in setting.prepared.contract.modalities:
            own = in_band_order(setting.prepared.contract.modalities[name], own.bands)
        weights[name] = own
    return preprocess.make_normaliser(
        setting.prepared.contract.modalities, weights, patch_size=setting.config.model.patch_size
    )


def encoders(setting: Setting) -> dict[str, features.Encoder]:
    """The trained encoder, and the same one as it was before training."""
    normaliser = normaliser_for(setting)
    fresh = build.init_params(setting.model, jax.random.key(setting.config.seed))
    trained = checkpoint.load_params(setting.saved, jax.eval_shape(lambda: fresh))
    return {
        "fusionx": features.Encoder(setting.model, {"encoder": trained["encoder"]}, normaliser),
        "untrained": features.Encoder(setting.model, {"encoder": fresh["encoder"]}, normaliser),
    }


def read_labels(setting: Setting) -> list[Labels]:
    """The scene tasks the config asks for, as far as the set has them.

    Raises:
      InputError: the set has none of them.
    """
    contract = setting.prepared.contract
    asked = [t for t in setting.config.evaluate.tasks if t in contract.tasks]
    if not asked:
        raise InputError(
            f"{setting.prepared.directory} has no task of {', '.join(setting.config.evaluate.tasks)} (it has "
            f"{', '.join(contract.tasks) or 'none'}); set --config.evaluate.tasks, or prepare it with labels."
        )
    pixel = [name for name in asked if contract.tasks[name].kind == "pixel"]
    if pixel:
        raise InputError(f"The task {pixel[0]!r} labels pixels; linear probes take scene labels.")
    group = contract.group_feature
    features_wanted = [
        *dict.fromkeys(contract.tasks[name].feature for name in asked),
        "id",
        *([group] if group else []),
    ]
    columns = _read_columns(setting.prepared, features_wanted)
    out = []
    for name in asked:
        task = contract.tasks[name]
        targets = {}
        for split, read in columns.items():
            raw = read[task.feature]
            targets[split] = np.eye(len(task.classes))[raw] if task.kind == "single" else raw.astype(np.float64)
        scored = metrics.scored_classes(targets["test"] > 0)
        if task.kind == "single":
            scored = targets["test"].any(0)
        unscored = [c for c, s in zip(task.classes, scored) if not s]
        if len(unscored) == len(task.classes):
            raise InputError(
                f"The test split of {setting.prepared.directory} cannot score any class of task {name!r}: no class has "
                "both tiles with it and tiles without it; use more tiles or other splits."
            )
        if unscored:
            progress.logger.warning(
                "Task %s: %s cannot be scored on the test split and is left out of macro metrics.",
                name,
                ", ".join(unscored),
            )
        ids = columns["train"]["id"].tolist()
        groups = columns["test"][group] if group else None
        out.append(Labels(name, task.kind, task.classes, targets, results.join_names(unscored), ids, groups))
    return out


def _read_columns(prepared: tiles.PreparedSet, names: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Small features of every tile, by split with tiles; one pass over the records."""
    splits = {s: n for s, n in prepared.contract.splits.items() if n}
    prepared.size("train"), prepared.size("test")  # both are needed: refused here if they are empty
    out: dict[str, dict[str, np.ndarray]] = {}
    with progress.Progress(sum(splits.values()), "labels", "tile") as bar:
        for split, size in splits.items():
            parts = []
            for start in range(0, size, 512):
                parts.append(prepared.read(split, np.arange(start, min(start + 512, size)), names))
                bar.advance(len(parts[-1][names[0]]))
            out[split] = {n: np.concatenate([p[n] for p in parts]) for n in names}
    return out


def label_subsets(setting: Setting, labels: Labels) -> list[dict[float, np.ndarray]]:
    """Each seed's nested subsets; read from id files where they exist, else drawn and written."""
    e = setting.config.evaluate
    # The same name may have been prepared anew with other tiles: subsets belong to one preparation.
    version = f"{setting.prepared.contract.name}-{features.contract_hash(setting.prepared)[:8]}"
    folder = os.path.join(setting.workdir, "subsets", version, labels.name)
    out = []
    for seed in range(e.seeds):
        found = subsets.read(e.subset_dir or folder, labels.ids, setting.config.label_fractions, seed)
        if found is None:
            if e.subset_dir:
                raise InputError(
                    f"evaluate.subset_dir {e.subset_dir} lacks a file such as "
                    f"{subsets.file_name(min(setting.config.label_fractions), seed)}; each fraction and seed needs one."
                )
            found = subsets.nested_subsets(labels.targets["train"] > 0, setting.config.label_fractions, seed)
            subsets.write(folder, labels.ids, found, seed)
        out.append(found)
    for fraction in out[0]:
        if len({len(d[fraction]) for d in out}) > 1:
            raise InputError(
                f"The label subsets of {100 * fraction:g} % in {e.subset_dir} differ in size between seeds; give as "
                "many ids in each."
            )
    return out


def _absent(labels: Labels, members: np.ndarray) -> str:
    present = labels.targets["train"][members].any(0)
    return results.join_names(c for c, p in zip(labels.classes, present) if not p)


class Judge:
    """Turns test scores into result rows, with intervals over test examples and seeds."""

    def __init__(self, setting: Setting, labels: Labels):
        self.setting, self.labels = setting, labels
        size = setting.prepared.size("test")
        groups = labels.groups
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        self.intervals = "tiles" if groups is None else "scenes"
        # One set of resamples for every method: differences between methods are paired.
        self.weights = metrics.resample_weights(size, setting.config.evaluate.bootstrap, seed=0, groups=groups)

    def measure(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of one score matrix, by resample."""
        test = self.labels.targets["test"]
        if self.labels.kind == "single":
            return metrics.single_label(scores, test.argmax(1), self.weights)
        by_class = metrics.per_class_ap(scores, test > 0, self.weights)
        found = metrics.multi_label(scores, test > 0, self.weights, by_class)
        return found | {f"ap/{c}": by_class[:, k] for k, c in enumerate(self.labels.classes)}

    def rows(
        self,
        method: str,
        shown: str,
        fraction: float,
        scores: list[np.ndarray],
        members: list[np.ndarray],
        chosen: list[str],
        protocol: str,
    ) -> Iterator[results.Row]:
        """Rows of one method and fraction: every seed, and the mean over seeds with per-class results."""
        measured = [self.measure(s) for s in scores]
        absent = [_absent(self.labels, m) for m in members]
        by_metric = {name: np.stack([m[name] for m in measured]) for name in measured[0]}
        protocol = f"{protocol}; intervals over {self.intervals}"
        if self.setting.config.evaluate.statistics != "checkpoint":
            protocol += f"; statistics of the {self.setting.config.evaluate.statistics}"
        for metric, values in by_metric.items():
            for seed in range(len(scores)) if "/" not in metric else ():
                value, low, high = metrics.interval(values[seed : seed + 1], seed=0)
                yield self._row(
                    method, shown, fraction, str(seed), metric, (value, low, high), 1, members[seed],
                    absent[seed], chosen[seed], protocol,
                )  # fmt: skip
            union = results.join_names(sorted({c for a in absent for c in results.split_names(a)}))
            yield self._row(
                method, shown, fraction, results.ALL_SEEDS, metric, metrics.interval(values, seed=0), len(scores),
                members[0], union, " ".join(chosen), protocol,
            )  # fmt: skip

    def _row(self, method, shown, fraction, seed, metric, numbers, num_seeds, members, absent, chosen, protocol):
        setting = self.setting
        own = method not in ("band_statistics",)
        return results.Row(
            dataset=setting.prepared.contract.name,
            method=method,
            modalities=shown,
            task=self.labels.name,
            label_fraction=float(fraction),
            num_labels=len(members),
            seed=seed,
            metric=metric,
            value=numbers[0],
            ci_low=numbers[1],
            ci_high=numbers[2],
            num_seeds=num_seeds,
            protocol=protocol,
            pooling=setting.config.evaluate.pooling if own else "",
            regularisation=chosen,
            absent_classes=absent,
            unscored_classes=self.labels.unscored,
            simulated=setting.prepared.contract.simulated,
            checkpoint=setting.saved.path if method == "fusionx" else "",
            config_hash=setting.config_hash,
        )


def probe_rows(
    setting: Setting,
    judge: Judge,
    method: str,
    shown: str,
    by_split: dict[str, np.ndarray],
    drawn: list[dict[float, np.ndarray]],
) -> Iterator[results.Row]:
    """Linear probes on features by split, for every fraction, seed and way of choosing the strength."""
    labels, e = judge.labels, setting.config.evaluate
    others = [by_split[s] for s in ("test", "val") if s in by_split]
    train, test, *val = features.standardise(by_split["train"], *others)
    strengths = np.array(sorted(e.regularisation))
    for fraction in sorted(drawn[0]):
        members = [d[fraction] for d in drawn]
        if fraction == 1:  # all labels: the seeds' subsets are one and the same
            members = members[:1]
        folds = np.stack(
            [
                probe.fold_numbers(labels.targets["train"][m] > 0, e.cv_folds, np.random.default_rng([seed, len(m)]))
                for seed, m in enumerate(members)
            ]
        )
        for selection in e.selection:
            if selection not in ("cv", "validation"):
                raise InputError(f"evaluate.selection holds {selection!r}; it may hold 'cv' and 'validation'.")
            if selection == "validation" and not val:
                raise InputError("evaluate.selection asks for 'validation', but the set has no val split.")
            fit = probe.fit(
                train,
                labels.targets["train"],
                np.stack(members),
                folds,
                strengths,
                test,
                softmax=labels.kind == "single",
                selection=(val[0], labels.targets["val"]) if selection == "validation" else None,
            )
            how = f"{e.cv_folds}-fold cv inside the labels" if selection == "cv" else "validation: all val labels"
            yield from judge.rows(
                method,
                shown,
                fraction,
                list(fit.scores.astype(np.float64)),
                members,
                [f"{strengths[c]:.3g}" for c in fit.chosen],
                f"linear probe; strength by {how}",
            )


def supervised_rows(setting: Setting, judge: Judge, drawn: list[dict[float, np.ndarray]]) -> Iterator[results.Row]:
    """The network trained from scratch, on all modalities."""
    s, labels = setting.config.evaluate.supervised, judge.labels
    if not setting.prepared.contract.splits.get("val"):
        raise InputError(
            "The supervised floor chooses its step on the val split, and the set has none; leave 'supervised' out of "
            "--config.evaluate.floors or prepare a val split."
        )
    modalities = tuple(m for m in setting.config.modalities if m in setting.prepared.contract.modalities)
    network = supervised.make_network(
        setting.model, normaliser_for(setting), modalities, labels.kind, s, setting.config.evaluate.pooling
    )
    task = supervised.Task(labels.kind, labels.targets)
    seeds = {f: (1 if f == 1 else min(s.seeds, len(drawn))) for f in drawn[0]}
    total = sum(
        seeds[f] * len(s.learning_rates) * supervised.num_steps(s, len(m), setting.prepared.size("train"))
        for f, m in drawn[0].items()
    )
    with progress.Progress(total, f"supervised from scratch, {labels.name}", "step") as bar:
        for fraction in sorted(drawn[0]):
            outcomes = [
                supervised.train(network, setting.prepared, task, drawn[seed][fraction], s, seed, bar)
                for seed in range(seeds[fraction])
            ]
            yield from judge.rows(
                "supervised",
                "+".join(modalities),
                fraction,
                [o.scores.astype(np.float64) for o in outcomes],
                [drawn[i][fraction] for i in range(seeds[fraction])],
                [f"rate {o.learning_rate:g} step {o.step}" for o in outcomes],
                f"trained from scratch, {outcomes[0].num_steps} steps of {s.batch_size}; step and rate by validation",
            )


def evaluate(setting: Setting) -> str:
    """Computes all rows, writes `results.csv` in the workdir and returns its path."""
    e = setting.config.evaluate
    unknown = [f for f in e.floors if f not in METHODS[1:]]
    if unknown:
        raise InputError(f"evaluate.floors holds {', '.join(unknown)}; it may hold {', '.join(METHODS[1:])}.")
    if e.seeds < 1 or e.cv_folds < 2 or not setting.config.label_fractions or not e.regularisation:
        raise InputError(
            f"evaluate.seeds is {e.seeds} and evaluate.cv_folds {e.cv_folds}; at least 1 seed, 2 folds, one label "
            "fraction and one regularisation strength are needed."
        )
    available = [m for m in setting.config.modalities if m in setting.prepared.contract.modalities]
    shown_sets = [s for s in e.modalities if all(m in available for m in s.split("+"))]
    if not shown_sets:
        raise InputError(
            f"evaluate.modalities is {', '.join(e.modalities)}, but the data set and the weights share only "
            f"{', '.join(available)}."
        )
    rows: list[results.Row] = []
    tasks = []
    for labels in read_labels(setting):
        drawn = label_subsets(setting, labels)
        for fraction in sorted(drawn[0]):
            missing = {c for d in drawn for c in results.split_names(_absent(labels, d[fraction]))}
            if missing:
                progress.logger.warning(
                    "Task %s: at %g %% of the labels %s has no example in some subset; it is scored all the same.",
                    labels.name,
                    100 * fraction,
                    ", ".join(sorted(missing)),
                )
        tasks.append((Judge(setting, labels), drawn))
    splits = ["train", "test"] + (["val"] if "validation" in e.selection else [])
    cache = os.path.join(setting.workdir, "features")
    encoder_of = {m: enc for m, enc in encoders(setting).items() if m == "fusionx" or m in e.floors}
    for shown in shown_sets:
        names = shown.split("+")
        sources = {}
        for method, encoder in encoder_of.items():
            pools = {
                s: features.extract(encoder, setting.prepared, s, names, e.batch_size, cache, f"{method} features")
                for s in splits
            }
            sources[method] = {s: features.assemble(p, e.pooling) for s, p in pools.items()}
        if "band_statistics" in e.floors:
            sources["band_statistics"] = {s: features.band_statistics(setting.prepared, s, names) for s in splits}
        chosen = [t for t in tasks if len(names) > 1 or t[0].labels.name in e.get("single_sensor_tasks", e.tasks)]
        with progress.Progress(len(sources) * len(chosen), f"probes, {shown}", "method") as bar:
            for method, by_split in sources.items():
                for judge, drawn in chosen:
                    rows += probe_rows(setting, judge, method, shown, by_split, drawn)
                    bar.advance()
    if "supervised" in e.floors:
        for judge, drawn in tasks:
            if judge.labels.name in e.supervised.tasks:
                rows += supervised_rows(setting, judge, drawn)
    path = os.path.join(setting.workdir, results.FILE_NAME)
    kept = [r for r in results.read(path) if r.dataset != setting.prepared.contract.name]
    results.write(path, kept + rows)
    with files.replacing(os.path.join(setting.workdir, SETTINGS_FILE)) as f:
        json.dump(
            {
                "dataset": tiles.absolute(setting.prepared.directory),
                "checkpoint": setting.saved.path,
                "config": config_lib.to_json(setting.config),
            },
            f,
            indent=1,
        )
    return path


def summary(rows: list[results.Row]) -> str:
    """A terminal table: the main metric of each method by label fraction."""
    lines = []
    for task, metric in dict.fromkeys((r.task, r.metric) for r in rows if r.metric in ("macro_map", "top1")):
        chosen = results.select(rows, task=task, metric=metric, seed=results.ALL_SEEDS)
        fractions = sorted({r.label_fraction for r in chosen})
        lines.append(f"{task}, {metric} at " + " / ".join(f"{100 * f:g} %" for f in fractions) + " of the labels")
        for key in dict.fromkeys(_line(r) for r in chosen):
            of = {r.label_fraction: r for r in chosen if _line(r) == key}
            cells = [
                f"{of[f].value:.3f} [{of[f].ci_low:.3f}, {of[f].ci_high:.3f}]" if f in of else "-" for f in fractions
            ]
            lines.append(f"  {key[0]:16} {key[1]:6} {'  '.join(cells)}{key[2]}")
    return "\n".join(lines)


def _line(row: results.Row) -> tuple[str, str, str]:
    """What one line of the summary holds: a method, what it was shown, and the practice of choosing if unusual."""
    return row.method, row.modalities, "  (strength by validation)" if "strength by validation" in row.protocol else ""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusionx evaluate",
        description="Linear probes over label fractions and seeds on frozen features, beside the floors.",
        epilog="Values of the run's config are overridden with --config.KEY=VALUE, e.g. --config.evaluate.seeds=3.",
    )
    parser.add_argument("--workdir", required=True, metavar="W", help="workdir of `fusionx pretrain`; results go there")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="prepared set to judge on")
    args, overrides = parser.parse_known_args(argv)
    setting = prepare_setting(args.workdir, args.dataset, overrides)
    handler = progress.log_to_file(os.path.join(args.workdir, "evaluate.log"))
    try:
        path = evaluate(setting)
    finally:
        progress.logger.removeHandler(handler)
        handler.close()
    contract = setting.prepared.contract
    print(f"{contract.title}:")
    print(summary(results.select(results.read(path), dataset=contract.name)))
    print(f"Rows are in {path}. Next: fusionx report --workdir={args.workdir}")
    return 0
