"""One evaluation: a checkpoint, a prepared set and the settings, checked to fit together and loaded once."""

import dataclasses
import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, files, preprocess
from fusionx_jax import config as config_lib
from fusionx_jax.contract import ModalityContract, check_compatible, in_band_order
from fusionx_jax.encoder import Encoder
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import features, hashes, rows
from fusionx_jax.evaluate import labels as labels_lib
from fusionx_jax.evaluate.cells import Store
from fusionx_jax.evaluate.folds import Division, divide
from fusionx_jax.evaluate.records import CellKey, Method, ModalitySet, parse_method, parse_modalities
from fusionx_jax.models import build
from fusionx_jax.models.network import Network
from fusionx_jax.prepared import sets
from fusionx_jax.types import Untyped


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is evaluated, on what, and how.

    `config` is the run's own, changed by overrides; `weights_hash` the hash of the settings that determine its weights.
    `workdir` is where results are written, `pretraining` the workdir of the weights: the same, unless a comparison
    evaluates weights of another one.
    """

    config: ConfigDict
    workdir: str
    pretraining: str
    saved: checkpoint.Saved
    prepared: sets.Readable
    model: Network
    weights_hash: str

    @property
    def method(self) -> Method:
        return parse_method(self.config.get("method", "fusionx"))

    @property
    def feature_cache(self) -> str:
        return files.join(self.workdir, "features")

    @functools.cached_property
    def normalizer(self) -> preprocess.Normalizer:
        """The checkpoint's statistics, or the data set's where the config says so; bands in the weights' order."""
        weights: dict[str, ModalityContract] = {}
        data = self.prepared.contract.modalities
        for name in self.config.modalities:
            weights[name] = self.saved.contract.modalities[name]
            if self.config.evaluate.statistics == "dataset" and name in data:
                weights[name] = in_band_order(data[name], weights[name].bands)
        return preprocess.make_normalizer(data, weights, patch_size=self.config.model.patch_size)

    @functools.cached_property
    def untrained(self) -> Encoder:
        """The encoder as it was initialized."""
        fresh = build.init_params(self.model, jax.random.key(self.config.seed))
        return Encoder(self.model, {"encoder": fresh["encoder"]}, self.normalizer)

    @functools.cached_property
    def trained(self) -> Encoder:
        """The encoder of the checkpoint, read once."""
        shapes = jax.eval_shape(lambda: build.init_params(self.model, jax.random.key(0)))
        params = checkpoint.load_params(self.saved, {"encoder": shapes["encoder"]}, part=True)
        return Encoder(self.model, params, self.normalizer)

    @functools.cached_property
    def statistics(self) -> dict[tuple[Untyped, ...], np.ndarray]:
        """Statistics of the pixels that were computed so far, by what they are of."""
        return {}

    @functools.cached_property
    def labels(self) -> list[labels_lib.Labels]:
        """The labels of every task that the settings ask for and the set has."""
        return labels_lib.read_labels(self.prepared, self.config.evaluate)

    def divisions(self, labels: labels_lib.Labels) -> list[Division]:
        """How a task's tiles are divided into training and scored ones."""
        return divide(labels, self.prepared, self.config.evaluate)

    def label_subsets(self, division: Division) -> dict[CellKey, Untyped]:
        """A division's label subsets, see `labels_lib.label_subsets`; written below the workdir."""
        e, fractions = self.config.evaluate, self.config.label_fractions
        names = [b.name for b in labels_lib.label_budgets(fractions, e.shots)]
        # The same name may have been prepared again with other tiles, and nested subsets depend on all budgets.
        version = hashes.digest([features.contract_hash(self.prepared), names])[:8]
        folder = files.join(self.workdir, "subsets", f"{self.prepared.contract.name}-{version}", division.labels.name)
        return labels_lib.label_subsets(division.labels, e, fractions, folder, division.name)

    def modality_sets(self) -> list[ModalitySet]:
        """The sets of modalities to give to encoders, the fullest as configured first.

        Raises:
          InputError: the data set and the weights share none of `evaluate.modalities`.
        """
        e, config = self.config.evaluate, self.config
        available = self.available_modalities
        names = [parse_modalities(m) for m in e.modalities]
        chosen = [m for m in names if set(m) <= set(available)]
        if not chosen:
            raise InputError(
                f"evaluate.modalities is {', '.join(e.modalities)}, but the data set and the weights share only "
                f"{', '.join(available)}."
            )
        out = []
        for given in chosen:
            out.append(ModalitySet(given))
            missing = tuple(m for m in config.modalities if m not in given)
            if missing and e.zero_fill and not self.fills_zeros:
                out.append(ModalitySet(given, missing))
        return out

    @property
    def fills_zeros(self) -> bool:
        """Whether the network can only fill a missing modality with zeros, since it reads stacked channels."""
        return build.traits(self.config).zero_filled

    @property
    def available_modalities(self) -> tuple[str, ...]:
        """Those that both the weights and the data set have."""
        return tuple(m for m in self.config.modalities if m in self.prepared.contract.modalities)

    def cell_store(self) -> Store:
        """Where this evaluation's cells are: a folder named after everything that affects their numbers, apart from the
        labeled tiles, which each cell identifies itself."""
        identity = [
            features.contract_hash(self.prepared),
            features.VERSION,
            self.weights_hash,
            self.saved.step,
            hashes.shared_settings(self.config),
        ]
        name = f"{self.prepared.contract.name}-{hashes.digest(identity)}"
        return Store(files.join(self.workdir, "cells", name), hashes.evaluator_hashes(self.config))

    def unscored_classes(self) -> dict[str, tuple[str, ...]]:
        """By task, the classes that the scored tiles cannot score; from the contract's counts."""
        contract, e = self.prepared.contract, self.config.evaluate
        splits = list(contract.splits) if e.get("folds", 0) else [e.score_split]
        out = {}
        for name, task in contract.tasks.items():
            counts = np.sum([task.counts[s] for s in splits if s in task.counts], axis=0).tolist()
            full = sum(contract.splits[s] for s in splits) if task.kind == "multi" else float("inf")
            out[name] = tuple(c for c, n in zip(task.classes, counts or ()) if not 0 < n < full)
        return out


def open_evaluation(
    workdir: str,
    dataset: str,
    overrides: list[str],
    protocol: ConfigDict | None = None,
    results: str = "",
    any_level: bool = False,
) -> Evaluation:
    """Loads what an evaluation needs and checks that it fits together.

    The settings are the run's own, changed by `overrides`, or those of the config `protocol`. Results are written to
    the folder `results`, by default to the workdir of the weights. `any_level` accepts data of other processing levels,
    as the setting of that name does.

    Raises:
      InputError: no checkpoint, no data set, or the two do not match.
    """
    saved = checkpoint.find(workdir)
    config = config_lib.from_json(saved.config)
    if protocol is not None:
        config.update({k: protocol[k] for k in ("evaluate", "label_fractions", "method")})
    config = config_lib.override(config, overrides)
    prepared = sets.open_sets(dataset, (), dict(config.get("band_groups", {})))
    _check_paths(workdir, dataset, config, saved, prepared)
    weights = {m: saved.contract.modalities[m] for m in config.modalities}
    any_level = any_level or config.evaluate.get("any_level", False)
    check_compatible(prepared.contract, weights, have_name=dataset, want_name=saved.path, any_level=any_level)
    model = build.make_model(config, saved.contract.modalities)
    for name in weights:
        if name in prepared.contract.modalities:
            m = prepared.contract.modalities[name]
            preprocess.check_patch((m.height, m.width), config.model.patch_size, dataset)
    # Command-line overrides count too: another seed has another untrained baseline, another dtype other numbers.
    weights_hash = hashes.digest(config_lib.weight_settings(config))
    return Evaluation(config, results or workdir, workdir, saved, prepared, model, weights_hash)


def _check_paths(
    workdir: str, dataset: str, config: ConfigDict, saved: checkpoint.Saved, prepared: sets.Readable
) -> None:
    if config.evaluate.score_split not in prepared.contract.splits:
        raise InputError(
            f"evaluate.score_split is {config.evaluate.score_split!r}; {dataset} has "
            f"{', '.join(prepared.contract.splits)}."
        )
    if files.absolute(workdir) == saved.path:
        raise InputError(f"{workdir} is a checkpoint; give its workdir, where results can be written.")
    unknown = [m for m in config.modalities if m not in saved.contract.modalities]
    if unknown:
        raise InputError(
            f"modalities names {', '.join(unknown)}, but the weights were trained on "
            f"{', '.join(saved.contract.modalities)}."
        )
    rows.read(files.join(workdir, rows.FILE_NAME))  # rows that cannot be kept are refused before hours of work
