"""`fusionx evaluate`: what a representation is worth where labels are few, beside baselines.

Frozen features of the training split feed linear probes over label fractions and seeds; the baselines (the same encoder
untrained, per-band statistics, the same network trained from scratch on the labels) go through the same subsets,
strengths and metrics. The test split is read once per reported number.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, files, preprocess, progress
from fusionx_jax import config as config_lib
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.contract import check_compatible, in_band_order
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import cells as cells_lib
from fusionx_jax.evaluate import features, label_training, segmentation, subsets
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.evaluate.numerics import knn, logistic, metrics, ridge
from fusionx_jax.models import build, peers
from fusionx_jax.prepared import remote, sets

BASELINES = ("untrained", "band_statistics", "supervised")
MAIN_METRICS = {"multi": "macro_map", "single": "top1", "pixel": "miou"}  # by kind of task
SETTINGS_FILE = "evaluation.json"


class Setting(NamedTuple):
    """One evaluation: what is judged, on what."""

    config: ConfigDict
    workdir: str
    saved: checkpoint.Saved
    prepared: sets.Readable
    model: Any
    config_hash: str

    @property
    def method(self) -> str:
        """What tables call the checkpoint's method."""
        return self.config.get("method", "fusionx")


class Labels(NamedTuple):
    """A task's labels: 0/1 targets by split; for pixel labels, the share of each class in a tile."""

    name: str
    kind: str
    feature: str
    classes: tuple[str, ...]
    targets: dict[str, np.ndarray]
    ids: list[str]
    groups: np.ndarray | None


def prepare_setting(workdir: str, dataset: str, overrides: list[str], judged_by: ConfigDict | None = None) -> Setting:
    """Loads what an evaluation needs and checks that it fits together.

    How to judge is the run's own config, changed by `overrides`, or that of `judged_by`.

    Raises:
      InputError: no checkpoint, no data set, or the two do not match.
    """
    saved = checkpoint.find(workdir)
    config = config_lib.from_json(saved.config)
    if judged_by is not None:
        config.update({k: judged_by[k] for k in ("evaluate", "label_fractions", "method")})
    config = config_lib.override(config, overrides)
    prepared = sets.open_sets(dataset, (), dict(config.get("band_groups", {})))
    if config.evaluate.score_split not in prepared.contract.splits:
        raise InputError(
            f"evaluate.score_split is {config.evaluate.score_split!r}; {dataset} has "
            f"{', '.join(prepared.contract.splits)}."
        )
    if os.path.abspath(workdir) == saved.path:
        raise InputError(f"{workdir} is a checkpoint; give its workdir, where results can be written.")
    unknown = [m for m in config.modalities if m not in saved.contract.modalities]
    if unknown:
        raise InputError(
            f"modalities names {', '.join(unknown)}, but the weights were trained on "
            f"{', '.join(saved.contract.modalities)}."
        )
    rows_lib.read(os.path.join(workdir, rows_lib.FILE_NAME))  # rows that cannot be kept are better known now
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    check_compatible(prepared.contract, weights, have_name=dataset, want_name=saved.path)
    model = build.make_model(config, saved.contract.modalities)
    for name in weights:
        if name in prepared.contract.modalities:
            m = prepared.contract.modalities[name]
            preprocess.check_patch((m.height, m.width), config.model.patch_size, dataset)
    # Command-line overrides count too: another seed has another untrained baseline, another dtype other numbers.
    trained = config_lib.weight_settings(config)
    return Setting(config, workdir, saved, prepared, model, _digest(trained))


def normalizer_for(setting: Setting) -> preprocess.Normalizer:
    """Statistics of the checkpoint, or of the data set where the config says so; bands always in the weights' order."""
    weights = {}
    for name in setting.config.modalities:
        own = setting.saved.contract.modalities[name]
        if setting.config.evaluate.statistics == "dataset" and name in setting.prepared.contract.modalities:
            own = in_band_order(setting.prepared.contract.modalities[name], own.bands)
        weights[name] = own
    return preprocess.make_normalizer(
        setting.prepared.contract.modalities, weights, patch_size=setting.config.model.patch_size
    )


def encoders(setting: Setting) -> dict[str, encoder_lib.Encoder]:
    """The trained encoder, and the same one as it was before training."""
    normalizer = normalizer_for(setting)
    fresh = build.init_params(setting.model, jax.random.key(setting.config.seed))
    trained = checkpoint.load_params(setting.saved, jax.eval_shape(lambda: fresh))
    return {
        setting.method: encoder_lib.Encoder(setting.model, {"encoder": trained["encoder"]}, normalizer),
        "untrained": encoder_lib.Encoder(setting.model, {"encoder": fresh["encoder"]}, normalizer),
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
    group = contract.group_feature
    features_wanted = [
        *dict.fromkeys(contract.tasks[name].feature for name in asked if contract.tasks[name].kind != "pixel"),
        "id",
        *([group] if group else []),
    ]
    columns = _read_columns(setting.prepared, setting.config.evaluate.score_split, features_wanted)
    split, out = setting.config.evaluate.score_split, []
    ids = columns["train"]["id"].tolist()
    groups = columns[split][group] if group else None
    for name in asked:
        task = contract.tasks[name]
        if task.kind == "pixel":
            targets = {
                s: segmentation.shares(setting.prepared, s, task.feature, len(task.classes)) for s in ("train", split)
            }
            out.append(Labels(name, task.kind, task.feature, task.classes, targets, ids, groups))
            continue
        targets = {}
        for part, read in columns.items():
            raw = read[task.feature]
            targets[part] = np.eye(len(task.classes))[raw] if task.kind == "single" else raw.astype(np.float64)
        scored = metrics.scored_classes(targets[split] > 0)
        if task.kind == "single":
            scored = targets[split].any(0)
        unscored = [c for c, s in zip(task.classes, scored) if not s]
        if len(unscored) == len(task.classes):
            raise InputError(
                f"The {split} split of {setting.prepared.directory} cannot score any class of task {name!r}: no class "
                "has both tiles with it and tiles without it; use more tiles or other splits."
            )
        if unscored:
            progress.logger.warning(
                "Task %s: %s cannot be scored on the %s split and is left out of macro metrics.",
                name,
                ", ".join(unscored),
                split,
            )
        out.append(Labels(name, task.kind, task.feature, task.classes, targets, ids, groups))
    return out


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


def label_subsets(setting: Setting, labels: Labels) -> list[dict[str, np.ndarray]]:
    """Each seed's nested subsets; read from id files where they exist, else drawn and written."""
    e, fractions = setting.config.evaluate, setting.config.label_fractions
    names = [f"{f:g}" for f in fractions] + [f"{k}-shot" for k in e.shots]
    # The same name may have been prepared anew with other tiles, and what is nested depends on all that is asked for.
    drawn_from = [features.contract_hash(setting.prepared), names]
    version = f"{setting.prepared.contract.name}-{_digest(drawn_from)[:8]}"
    folder = os.path.join(setting.workdir, "subsets", version, labels.name)
    out = []
    for seed in range(e.seeds):
        found = subsets.read(e.subset_dir or folder, labels.ids, names, seed)
        if found is None:
            if e.subset_dir:
                lacking = [subsets.file_name(n, seed) for n in names]
                lacking = [n for n in lacking if not os.path.exists(os.path.join(e.subset_dir, n))]
                raise InputError(
                    f"evaluate.subset_dir {e.subset_dir} lacks {', '.join(lacking)}; each fraction and seed needs one."
                )
            found = subsets.draw(labels.targets["train"] > 0, fractions, e.shots, seed)
            subsets.write(folder, labels.ids, found, seed)
        out.append(found)
    return out


def _absent(labels: Labels, members: np.ndarray) -> str:
    present = (labels.targets["train"][members] > 0).any(0)
    return rows_lib.join_names(c for c, p in zip(labels.classes, present) if not p)


class Judge:
    """Turns scores of the test split into cells: every metric, with its bootstrap resamples."""

    def __init__(self, setting: Setting, labels: Labels, drawn: list[dict[str, np.ndarray]]):
        self.setting, self.labels, self.drawn = setting, labels, drawn
        size = setting.prepared.size(setting.config.evaluate.score_split)
        groups = labels.groups
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None
        self.intervals = "tiles" if groups is None else "scenes"
        # One set of resamples for every method: differences between methods are paired.
        self.weights = metrics.resample_weights(size, setting.config.evaluate.bootstrap, seed=0, groups=groups)

    def measure(self, scores: np.ndarray) -> tuple[dict[str, np.ndarray], list[list[int]]]:
        """Every metric of one score matrix by resample, and confusion counts where a tile has one class.

        Scores are [M, K]; for pixel labels [M, K, K] confusion counts of every tile, or [M, K] predicted shares.
        """
        truth = self.labels.targets[self.setting.config.evaluate.score_split]
        if self.labels.kind == "pixel" and scores.ndim == 2:
            return metrics.regression(scores, truth, self.weights), []
        if self.labels.kind == "pixel":
            found = metrics.segmentation(scores, self.weights)
            named = {f"iou/{c}": found.pop(f"iou/{k}") for k, c in enumerate(self.labels.classes)}
            return found | named, scores.sum(0).tolist()
        if self.labels.kind == "single":
            counts = metrics.confusion(scores.argmax(1), truth.argmax(1), truth.shape[1])
            return metrics.single_label(scores, truth.argmax(1), self.weights), counts.tolist()
        by_class = metrics.per_class_ap(scores, truth > 0, self.weights)
        found = metrics.multi_label(scores, truth > 0, self.weights, by_class)
        return found | {f"ap/{c}": by_class[:, k] for k, c in enumerate(self.labels.classes)}, []

    def cell(
        self,
        group: tuple[str, str, str, str],
        label: str,
        seed: int,
        scores: np.ndarray,
        chosen: str,
        protocol: str,
    ) -> cells_lib.Cell:
        """One cell of a group (method, modalities, task, evaluator)."""
        e, members = self.setting.config.evaluate, self.drawn[seed][label]
        protocol = f"{protocol}; intervals over {self.intervals}"
        if e.statistics != "checkpoint":
            protocol += f"; statistics of the {e.statistics}"
        if e.score_split != "test":
            protocol += f"; scored on {e.score_split}"
        if e.score_split == "val" and group[3] in CHOOSE_ON_VALIDATION:
            protocol += ", the tiles it was chosen on: too good"
        values, counts = self.measure(scores)
        absent = _absent(self.labels, members)
        return cells_lib.Cell(
            *group, label, seed, len(members), absent, chosen, protocol, values, counts, subsets.digest(members)
        )

    def have(self, cells: dict[tuple[str, int], cells_lib.Cell]) -> dict[tuple[str, int], cells_lib.Cell]:
        """Those of the cells that were measured with the subsets drawn here."""
        return {
            (label, seed): c
            for (label, seed), c in cells.items()
            if seed < len(self.drawn)
            and label in self.drawn[seed]
            and c.subset == subsets.digest(self.drawn[seed][label])
        }

    def seeds(self, label: str, trainings: int | None = None) -> list[int]:
        """The label subsets to judge. With all labels they are one and the same: once is enough, unless something is
        trained, `trainings` times, whose start and order of tiles depend on the seed too."""
        if trainings is not None:
            return list(range(min(trainings, len(self.drawn))))
        return [0] if len(self.drawn[0][label]) == len(self.labels.ids) else list(range(len(self.drawn)))


class Source(NamedTuple):
    """A method as evaluators see it: frozen features of a split, an encoder to train on, the modalities shown.

    `each` gives the features of every modality shown as if it were the only one, side by side.
    """

    features: Callable[[str], np.ndarray]
    encoder: encoder_lib.Encoder
    shown: tuple[str, ...]
    remark: str = ""
    each: Callable[[str], np.ndarray] | None = None


def _probe_cells(judge: Judge, group, source: Source, wanted: list[tuple[str, int]]) -> Iterator[list[cells_lib.Cell]]:
    """Linear probes; subsets of one size share a program."""
    labels, e = judge.labels, judge.setting.config.evaluate
    by_validation, remark, read = group[3].endswith("validation"), source.remark, source.features
    if group[3] == EACH:
        remark += "; features of all modalities together and of each alone"

        def read(split: str) -> np.ndarray:
            return np.concatenate([source.features(split), source.each(split)], axis=1)

    if by_validation and not judge.setting.prepared.contract.splits.get("val"):
        raise InputError("evaluate.selection asks for 'validation', but the set has no val split.")
    splits = [e.score_split, *(["val"] if by_validation else [])]
    train, score, *val = features.standardize(read("train"), *map(read, splits))
    strengths = np.array(sorted(e.regularization))
    how = "validation: all val labels" if by_validation else f"{e.cv_folds}-fold cv inside the labels"
    for size in sorted({len(judge.drawn[seed][label]) for label, seed in wanted}):
        same = [(label, seed) for label, seed in wanted if len(judge.drawn[seed][label]) == size]
        members = [judge.drawn[seed][label] for label, seed in same]
        folds = [
            logistic.fold_numbers(labels.targets["train"][m] > 0, e.cv_folds, np.random.default_rng([seed, len(m)]))
            for m, (_, seed) in zip(members, same)
        ]
        fit = logistic.fit(
            train,
            labels.targets["train"],
            np.stack(members),
            np.stack(folds),
            strengths,
            score,
            softmax=labels.kind == "single",
            selection=(val[0], labels.targets["val"]) if by_validation else None,
        )
        yield [
            judge.cell(
                group, label, seed, scores.astype(np.float64), f"{strengths[chosen]:.3g}",
                f"linear probe; strength by {how}{remark}",
            )
            for (label, seed), scores, chosen in zip(same, fit.scores, fit.chosen)
        ]  # fmt: skip


def _knn_cells(judge: Judge, group, source: Source, wanted: list[tuple[str, int]]) -> Iterator[list[cells_lib.Cell]]:
    e = judge.setting.config.evaluate
    train, score = features.standardize(source.features("train"), source.features(e.score_split))
    protocol = f"kNN, k {e.knn.k}, temperature {e.knn.temperature:g}{source.remark}"
    for label, seed in wanted:
        members = judge.drawn[seed][label]
        scores = knn.scores(
            train, judge.labels.targets["train"], members, score, k=e.knn.k, temperature=e.knn.temperature
        )
        yield [judge.cell(group, label, seed, scores.astype(np.float64), "", protocol)]


def _trained_cells(
    judge: Judge, group, source: Source, wanted: list[tuple[str, int]]
) -> Iterator[list[cells_lib.Cell]]:
    """The whole encoder trained on the labels: from its pretrained weights ("finetune") or fresh ones ("scratch")."""
    setting, labels = judge.setting, judge.labels
    fresh = group[3] == "scratch"
    s = setting.config.evaluate.supervised if fresh else setting.config.evaluate.finetune
    prepared = setting.prepared
    if not prepared.contract.splits.get("val"):
        raise InputError(
            "Training on labels chooses its step on the val split, and the set has none; leave 'supervised' out of "
            "--config.evaluate.baselines and 'finetune' and 'scratch' out of --config.evaluate.evaluators, or prepare "
            "a val split."
        )
    encoder = source.encoder
    start = (lambda seed: build.init_params(encoder.model, jax.random.key(seed))) if fresh else lambda _: encoder.params
    data = prepared.contract.modalities
    network = label_training.make_network(
        encoder, start, source.shown, labels.kind, s, setting.config.evaluate.pooling,
        {m: (data[m].height, data[m].width, len(data[m].bands)) for m in source.shown},
    )  # fmt: skip
    task = label_training.Task(labels.kind, labels.targets)
    sizes = [len(judge.drawn[seed][label]) for label, seed in wanted]
    steps = [label_training.num_steps(s, size, prepared.size("train")) for size in sizes]
    what = "from scratch" if fresh else "fine-tuned"
    with progress.Progress(
        sum(steps) * len(s.learning_rates), f"{group[0]} {what}, {labels.name}, {group[1]}", "step"
    ) as bar:
        for label, seed in wanted:
            done = label_training.train(
                network, prepared, task, judge.drawn[seed][label], s, seed, bar, setting.config.evaluate.score_split
            )
            yield [
                judge.cell(
                    group, label, seed, done.scores.astype(np.float64), f"rate {done.learning_rate:g} step {done.step}",
                    f"trained {what}, {done.num_steps} steps of {s.batch_size}; step and rate by validation"
                    + source.remark,
                )
            ]  # fmt: skip


def _segment_cells(
    judge: Judge, group, source: Source, wanted: list[tuple[str, int]]
) -> Iterator[list[cells_lib.Cell]]:
    setting, labels = judge.setting, judge.labels
    s = setting.config.evaluate.segmentation
    trainer = segmentation.Trainer(
        source.encoder, setting.prepared, labels.feature, source.shown, len(labels.classes),
        group[3].removeprefix("segment_"), s,
    )  # fmt: skip
    with progress.Progress(len(wanted) * s.num_steps, f"{group[0]} {group[3]}, {group[1]}", "step") as bar:
        for label, seed in wanted:
            params = trainer.train(judge.drawn[seed][label], seed, bar)
            scores = trainer.confusion(params, setting.config.evaluate.score_split)
            protocol = f"{group[3].removeprefix('segment_')} head on frozen tokens, {s.num_steps} steps{source.remark}"
            yield [judge.cell(group, label, seed, scores, f"rate {s.learning_rate:g}", protocol)]


def _cover_cells(judge: Judge, group, source: Source, wanted: list[tuple[str, int]]) -> Iterator[list[cells_lib.Cell]]:
    """Regression: the share of each class in a tile."""
    e, shares = judge.setting.config.evaluate, judge.labels.targets["train"]
    train, score = features.standardize(source.features("train"), source.features(e.score_split))
    for label, seed in wanted:
        members = judge.drawn[seed][label]
        members = members[np.isfinite(shares[members]).all(1)]  # the others have no labeled pixel
        if len(members) < 2:
            raise InputError(
                f"Task {group[2]}: of the tiles of subset {seed} with {rows_lib.label_name(label)} of the labels "
                f"{len(members)} hold a labeled pixel; a regression needs 2. Use a larger fraction or more data."
            )
        folds = logistic.fold_numbers(shares[members] > 0, e.cv_folds, np.random.default_rng([seed, len(members)]))
        predicted, chosen = ridge.fit(train[members], shares[members], folds, np.array(sorted(e.regularization)), score)
        protocol = (
            f"ridge regression of class shares; strength by {e.cv_folds}-fold cv inside the labels{source.remark}"
        )
        yield [judge.cell(group, label, seed, predicted, f"{chosen:.3g}", protocol)]


_SCENES, _PIXELS = ("multi", "single"), ("pixel",)
EACH = "linear_probe_each"
CHOOSE_ON_VALIDATION = ("linear_probe_validation", "finetune", "scratch")
EVALUATORS = {
    "linear_probe": (_SCENES, _probe_cells),
    EACH: (_SCENES, _probe_cells),
    "linear_probe_validation": (_SCENES, _probe_cells),
    "knn": (_SCENES, _knn_cells),
    "finetune": (_SCENES, _trained_cells),
    "scratch": (_SCENES, _trained_cells),
    "ridge_cover": (_PIXELS, _cover_cells),
    "segment_linear": (_PIXELS, _segment_cells),
    "segment_decoder": (_PIXELS, _segment_cells),
}
_ASKED = tuple(name for name in EVALUATORS if name != "linear_probe_validation")  # that one is a way of selection


def sources(setting: Setting, shown: str, zeros: tuple[str, ...], together: bool = False) -> dict[str, Source]:
    """The checkpoint's method and the baselines asked for, with only the modalities of `shown`; the others are left out
    of the token sequence, or filled with zeros where `zeros` names them. `together`: see `features.extract`."""
    e = setting.config.evaluate
    cache = os.path.join(setting.workdir, "features")
    names = shown.split("+")
    remark = f"; {', '.join(zeros)} filled with zeros" if zeros else ""

    def of_encoder(method: str, encoder: encoder_lib.Encoder) -> Source:
        def pooled(split: str, encoder: encoder_lib.Encoder, shown: Sequence[str]) -> np.ndarray:
            what = f"{method} features"
            pools = features.extract(encoder, setting.prepared, split, shown, e.batch_size, cache, what, together)
            return encoder_lib.assemble(pools, e.pooling)

        @functools.cache
        def read(split: str) -> np.ndarray:
            return pooled(split, encoder, names)

        @functools.cache
        def each(split: str) -> np.ndarray:
            parts = []
            for name in names:
                alone = encoder
                if build.traits(setting.config).zero_filled:
                    others = tuple(m for m in setting.config.modalities if m != name)
                    alone = dataclasses.replace(encoder, zeros=others)
                parts.append(pooled(split, alone, [name]))
            return np.concatenate(parts, axis=1)

        return Source(read, encoder, tuple(names), remark, each)

    out = {}
    for method, encoder in encoders(setting).items():
        if method == setting.method or method in e.baselines:
            out[method] = of_encoder(method, dataclasses.replace(encoder, zeros=zeros))
    if "supervised" in e.baselines:
        out["supervised"] = Source(lambda _: np.zeros(0), out[setting.method].encoder, tuple(names), remark)
    if "band_statistics" in e.baselines:
        own = out[setting.method].encoder
        plain = dataclasses.replace(own, model=peers.PatchStatistics(own.model.config), params={}, zeros=())
        statistics = functools.cache(lambda split: features.band_statistics(setting.prepared, split, names))
        out["band_statistics"] = Source(statistics, plain, tuple(names))
    return out


class Work(NamedTuple):
    """One group of cells to measure: the judge of its task, and which subsets."""

    group: tuple[str, str, str, str]
    judge: Judge
    wanted: list[tuple[str, int]]
    shown: str
    zeros: tuple[str, ...]


def shown_sets(setting: Setting) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """The modalities to show, each set with those to fill with zeros, and all that are there to be shown.

    Raises:
      InputError: none of `evaluate.modalities` is there.
    """
    e, config = setting.config.evaluate, setting.config
    available = [m for m in config.modalities if m in setting.prepared.contract.modalities]
    groups = [s for s in e.modalities if all(m in available for m in s.split("+"))]
    if not groups:
        raise InputError(
            f"evaluate.modalities is {', '.join(e.modalities)}, but the data set and the weights share only "
            f"{', '.join(available)}."
        )
    shown_with = []
    for shown in groups:
        left_out = tuple(m for m in config.modalities if m not in shown.split("+"))
        if build.traits(config).zero_filled:
            shown_with.append((shown, left_out))  # these networks know no other way
        else:
            shown_with += [(shown, ())] + ([(shown, left_out)] if e.zero_fill and left_out else [])
    return shown_with, available


def encode_together(setting: Setting) -> None:
    """In a job of several processes: all encode their share of the tiles, and the first keeps what the evaluators of
    frozen features will read."""
    e = setting.config.evaluate
    splits = ["train", e.score_split, *(["val"] if "validation" in e.selection else [])]
    for shown, zeros in shown_sets(setting)[0]:
        for method, source in sources(setting, shown, zeros, together=True).items():
            if method in encoders(setting):
                for split in dict.fromkeys(splits):
                    source.features(split)
                    if EACH in e.evaluators and "+" in shown and not zeros:
                        source.each(split)


def plan(setting: Setting, judges: Sequence[Judge]) -> list[Work]:
    """Every group of cells that the settings ask for, in the order in which features are shared."""
    e = setting.config.evaluate
    shown_with, available = shown_sets(setting)
    work = []
    for shown, zeros in shown_with:
        known_otherwise = not build.traits(setting.config).zero_filled
        called = shown + (f" (zeros for {'+'.join(zeros)})" if zeros and known_otherwise else "")
        for judge in judges:
            task, kind = judge.labels.name, judge.labels.kind
            if "+" not in shown and len(available) > 1 and task not in e.single_sensor_tasks:
                continue
            asked = []
            for evaluator in e.evaluators:
                if evaluator == "linear_probe":
                    asked += [{"cv": "linear_probe", "validation": "linear_probe_validation"}[s] for s in e.selection]
                else:
                    asked.append(evaluator)
            methods = [setting.method, *(b for b in e.baselines if b != "supervised")]
            groups = [(m, called, task, x) for x in asked if kind in EVALUATORS[x][0] for m in methods]
            if zeros and known_otherwise:
                groups = [g for g in groups if g[0] != "band_statistics"]
            trained = {"finetune": e.finetune.tasks, "scratch": e.supervised.tasks}
            groups = [g for g in groups if task in trained.get(g[3], (task,))]
            # One modality is alone already, and statistics of bands know nothing of other modalities.
            groups = [g for g in groups if g[3] != EACH or ("+" in shown and not zeros and g[0] != "band_statistics")]
            groups = [g for g in groups if not (g[0] == "band_statistics" and g[3] in trained)]
            if (
                "supervised" in e.baselines
                and shown == shown_with[0][0]
                and task in e.supervised.tasks
                and kind in _SCENES
            ):
                groups.append(("supervised", called, task, "scratch"))
            for group in groups:
                trainings = {"finetune": e.finetune.seeds, "scratch": e.supervised.seeds}.get(group[3])
                trainings = e.segmentation.seeds if group[3].startswith("segment") else trainings
                wanted = [(label, seed) for label in judge.drawn[0] for seed in judge.seeds(label, trainings)]
                work.append(Work(group, judge, wanted, shown, zeros))
    return work


def check(config: ConfigDict, prepared: sets.Readable | None = None) -> None:
    """Refuses settings of an evaluation that make no sense, or, where it is given, do not fit a prepared set."""
    e = config.evaluate
    for key, known in _CHOICES.items():
        if e[key] not in known:
            raise InputError(f"evaluate.{key} is {e[key]!r}; it must be one of {', '.join(known)}.")
    unknown = [b for b in e.baselines if b not in BASELINES]
    if unknown:
        raise InputError(f"evaluate.baselines holds {', '.join(unknown)}; it may hold {', '.join(BASELINES)}.")
    unknown = [x for x in e.evaluators if x not in _ASKED]
    if unknown:
        raise InputError(f"evaluate.evaluators holds {', '.join(unknown)}; it may hold {', '.join(_ASKED)}.")
    unknown = [x for x in e.selection if x not in ("cv", "validation")]
    if unknown:
        raise InputError(f"evaluate.selection holds {unknown[0]!r}; it may hold 'cv' and 'validation'.")
    if e.seeds < 1 or e.cv_folds < 2 or not (config.label_fractions or e.shots) or not e.regularization:
        raise InputError(
            f"evaluate.seeds is {e.seeds} and evaluate.cv_folds {e.cv_folds}; at least 1 seed, 2 folds, one label "
            "fraction or number of shots, and one regularization strength are needed."
        )
    if not any(set(shown.split("+")) <= set(config.modalities) for shown in e.modalities):
        raise InputError(
            f"evaluate.modalities is {', '.join(e.modalities)}, but the network reads {', '.join(config.modalities)}."
        )

    if any(not 0 < f <= 1 for f in config.label_fractions):
        raise InputError(f"label_fractions is {tuple(config.label_fractions)}; fractions lie above 0 and at most at 1.")
    if e.subset_dir and not os.path.isdir(e.subset_dir):
        raise InputError(f"evaluate.subset_dir is {e.subset_dir}, but there is no such folder.")
    if e.knn.k < 1 or e.knn.temperature <= 0:
        raise InputError(f"evaluate.knn has k {e.knn.k} and temperature {e.knn.temperature}; both must be positive.")
    for part in ("supervised", "finetune", "segmentation"):
        _check_training(f"evaluate.{part}", e[part])
    if prepared is None:
        return
    count = prepared.contract.splits.get("train", 0)
    small = [f for f in config.label_fractions if round(f * count) < 2]
    if small:
        raise InputError(
            f"label_fractions holds {min(small):g}, which leaves fewer than 2 of the {count} training tiles of "
            f"{prepared.directory}; use larger fractions or more data."
        )
    if e.score_split not in prepared.contract.splits or not set(e.tasks) & prepared.contract.tasks.keys():
        raise InputError(
            f"evaluate.score_split is {e.score_split!r} and evaluate.tasks {tuple(e.tasks)}; {prepared.directory} has "
            f"the splits {', '.join(prepared.contract.splits)} and the tasks "
            f"{', '.join(prepared.contract.tasks) or '(none)'}."
        )


def _check_training(name: str, settings: ConfigDict) -> None:
    least = {"seeds": 1, "batch_size": 1, "num_steps": 1, "min_steps": 0, "eval_every": 1, "val_tiles": 0}
    for key, lowest in least.items():
        if settings.get(key, lowest) < lowest:
            raise InputError(f"{name}.{key} is {settings[key]}; it must be at least {lowest}.")
    rates = settings.get("learning_rates", (settings.get("learning_rate", 0),))
    if not rates or min(rates) <= 0:
        raise InputError(f"{name} has the rates {tuple(rates)}; at least one is needed, and all must be positive.")


_CHOICES = {
    "pooling": encoder_lib.POOLINGS, "statistics": ("checkpoint", "dataset"), "score_split": ("test", "val"),
}  # fmt: skip
_OWN = {"knn": "knn", "finetune": "finetune", "scratch": "supervised"}
_OWN |= {"segment_linear": "segmentation", "segment_decoder": "segmentation"}


def shared_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings that touch every cell's numbers; what only says which cells there are is not among them."""
    free = ("evaluators", "baselines", "modalities", "tasks", "single_sensor_tasks", "seeds", "shots", "zero_fill")
    free += ("selection", *_OWN.values())
    return {k: v for k, v in config_lib.to_json(config)["evaluate"].items() if k not in free}


def evaluator_settings(config: ConfigDict, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """By evaluator, a word for the settings that touch its cells alone, without some of them."""
    e = config_lib.to_json(config)["evaluate"]
    out = ("seeds", "tasks", *leave_out)
    return {x: _digest({k: v for k, v in e[key].items() if k not in out}) for x, key in _OWN.items()}


def cell_store(setting: Setting) -> cells_lib.Store:
    """Where this evaluation's cells are: a folder named after everything that touches their numbers but the labeled
    tiles, which each cell names itself."""
    identity = [
        features.contract_hash(setting.prepared),
        setting.config_hash,
        setting.saved.step,
        config_lib.to_json(setting.config)["label_fractions"],
        shared_settings(setting.config),
    ]
    name = f"{setting.prepared.contract.name}-{_digest(identity)}"
    return cells_lib.Store(os.path.join(setting.workdir, "cells", name), evaluator_settings(setting.config))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def measure(
    setting: Setting, with_earlier: bool = False
) -> dict[tuple[str, str, str, str], dict[tuple[str, int], cells_lib.Cell]]:
    """Measures the cells that are missing, each kept as soon as it is there, and returns all that are asked for;
    `with_earlier`, also what was asked for before, of the same weights, labels and settings.

    Raises:
      InputError: the settings make no sense, or do not fit the data.
    """
    check(setting.config)
    judges = []
    for labels in read_labels(setting):
        drawn = label_subsets(setting, labels)
        for label in drawn[0]:
            missing = {c for d in drawn for c in rows_lib.split_names(_absent(labels, d[label]))}
            if missing:
                progress.logger.warning(
                    "Task %s: with %s of the labels %s has no example in some subset; it is scored all the same.",
                    labels.name,
                    rows_lib.label_name(label),
                    ", ".join(sorted(missing)),
                )
        judges.append(Judge(setting, labels, drawn))
    store = cell_store(setting)
    found = {}
    known: tuple[Any, dict[str, Source]] = (None, {})
    work = plan(setting, judges)
    total = sum(len(w.wanted) for w in work)
    with progress.Progress(total, "cells", "cell") as bar:
        for w in work:
            have = w.judge.have(store.read(w.group))
            missing = [key for key in w.wanted if key not in have]
            bar.advance(len(w.wanted) - len(missing))
            if missing:
                if known[0] != (w.shown, w.zeros):
                    known = ((w.shown, w.zeros), sources(setting, w.shown, w.zeros))
                for cells in EVALUATORS[w.group[3]][1](w.judge, w.group, known[1][w.group[0]], missing):
                    store.add(cells)
                    bar.advance(len(cells))
                have = w.judge.have(store.read(w.group))
            found[w.group] = {key: have[key] for key in w.wanted}
    by_task = {j.labels.name: j for j in judges}
    for group, cells in store.read_all().items() if with_earlier else ():
        if group not in found and group[2] in by_task and (have := by_task[group[2]].have(cells)):
            found[group] = have
    return found


def context(setting: Setting) -> rows_lib.Context:
    """What result rows say beside their cells."""
    contract = setting.prepared.contract
    return rows_lib.Context(
        dataset=contract.name,
        simulated=contract.simulated,
        num_train=contract.splits["train"],
        unscored=_unscored(setting),
        pooling=setting.config.evaluate.pooling,
        checkpoint=setting.saved.path,
        config_hash=setting.config_hash,
    )


def _unscored(setting: Setting) -> dict[str, str]:
    """By task, the classes that the scored split cannot score; from the contract's counts."""
    contract, split = setting.prepared.contract, setting.config.evaluate.score_split
    out = {}
    for name, task in contract.tasks.items():
        counts = task.counts.get(split, ())
        full = contract.splits[split] if task.kind == "multi" else float("inf")
        out[name] = rows_lib.join_names(c for c, n in zip(task.classes, counts) if not 0 < n < full)
    return out


def evaluate(setting: Setting) -> str:
    """Measures all cells, writes `results.csv` in the workdir and returns its path."""
    found = measure(setting, with_earlier=True)
    about = context(setting)
    rows = []
    for group, cells in found.items():
        own = about if group[0] == setting.method else about._replace(checkpoint="")
        rows += rows_lib.from_cells(group, [rows_lib.Pretraining(setting.config.seed, own, cells)])
    path = os.path.join(setting.workdir, rows_lib.FILE_NAME)
    kept = [r for r in rows_lib.read(path) if r.dataset != setting.prepared.contract.name]
    rows_lib.write(path, kept + rows)
    with files.replacing(os.path.join(setting.workdir, SETTINGS_FILE)) as f:
        json.dump(
            {
                "dataset": remote.absolute(setting.prepared.directory),
                "checkpoint": setting.saved.path,
                "config": config_lib.to_json(setting.config),
            },
            f,
            indent=1,
        )
    return path


def summary(rows: list[rows_lib.Row]) -> str:
    """A terminal table: the main metric of each method by label fraction."""
    lines = []
    for task, metric in dict.fromkeys((r.task, r.metric) for r in rows if r.metric in MAIN_METRICS.values()):
        chosen = rows_lib.select(rows, task=task, metric=metric, seed=rows_lib.ALL_SEEDS)
        labels = sorted({r.label for r in chosen}, key=rows_lib.label_order)
        lines.append(f"{task}, {metric} with " + " / ".join(map(rows_lib.label_name, labels)) + " of the labels")
        for key in dict.fromkeys((r.method, r.modalities, r.evaluator) for r in chosen):
            of = {r.label: r for r in chosen if (r.method, r.modalities, r.evaluator) == key}
            cells = [f"{of[x].value:.3f} [{of[x].ci_low:.3f}, {of[x].ci_high:.3f}]" if x in of else "-" for x in labels]
            plain = key[2] == "linear_probe" or (key[2] == "scratch" and key[0].startswith("supervised"))
            kind = "" if plain else f"  ({key[2]})"
            lines.append(f"  {key[0]:16} {key[1]:6} {'  '.join(cells)}{kind}")
    return "\n".join(lines)
