"""The whole encoder trained on the labels: fine-tuned from its pretrained weights, or trained from scratch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import progress
from fusionx_jax.contract import Contract
from fusionx_jax.evaluate import batches, label_training
from fusionx_jax.evaluate.evaluators.base import Problem, Scored, Source, TileEvaluator
from fusionx_jax.evaluate.evaluators.checks import check_present, check_training
from fusionx_jax.evaluate.evaluators.probe import linear_starts
from fusionx_jax.evaluate.records import CellKey
from fusionx_jax.models import build


class FineTuning(TileEvaluator):
    """Trains on from the pretrained weights with the settings `evaluate.finetune`."""

    name = "finetune"
    label = "fine-tuned"
    line_style = "--"
    in_figures = True
    settings = ("finetune",)
    needs_training = True
    verb: ClassVar[str] = "fine-tuned"
    version = 3  # 2: starts from the linear probe; 3: everything is selected inside the labels

    def training_settings(self, config: ConfigDict) -> ConfigDict:
        return config[self.settings[0]]

    def covers(self, config: ConfigDict, task: str) -> bool:
        return task in self.training_settings(config).tasks

    def num_trainings(self, config: ConfigDict) -> int | None:
        return int(self.training_settings(config).seeds)

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        super().check(config, contract)
        name, training = f"evaluate.{self.settings[0]}", self.training_settings(config)
        check_present(name, training, (field.name for field in dataclasses.fields(label_training.Settings)))
        check_training(name, training)
        label_training.Settings.from_config(self.training_settings(config))

    def initial(self, source: Source) -> Callable[[int], PyTree] | None:
        """The parameters to start from, by seed; None starts from the source's own."""
        del source
        return None

    def starts(
        self, source: Source, problem: Problem, keys: Sequence[CellKey], trainer: label_training.LabelTrainer
    ) -> Mapping[CellKey, label_training.Starts]:
        """The linear layers to start from, by label subset."""
        fitted = {key: trainer.divide(problem.subsets[key], key.seed)[0] for key in keys}
        selection = linear_starts(source, dataclasses.replace(problem, subsets=fitted), keys)
        final = linear_starts(source, problem, keys)
        return {key: label_training.Starts(selection[key], final[key]) for key in keys}

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        config, labels = self.training_settings(problem.config), problem.labels
        trainer = label_training.LabelTrainer(
            source.encoder,
            batches.DeviceReader(problem.prepared, source.images),
            label_training.Task(labels.kind, labels.targets),
            label_training.Settings.from_config(config),
            pooling=problem.config.pooling,
            initial=self.initial(source),
        )
        steps = sum(trainer.num_steps(len(problem.subsets[key])) for key in keys)
        starts = self.starts(source, problem, keys, trainer)
        title = f"{source.method} {self.verb}, {labels.name}, {source.modalities.title}"
        with progress.Progress(steps * trainer.num_trainings(), title, "step") as bar:
            for key in keys:
                outcome = trainer.train(problem.subsets[key], key.seed, bar, problem.score_split, starts.get(key))
                selected = (
                    f"rate {outcome.learning_rate:g}, layer decay {outcome.layer_decay:g}, step {outcome.step}"
                    if outcome.step
                    else "the linear probe"
                )
                origin = " from the linear probe" if key in starts else ""
                training = (
                    f"{self.verb}{origin}, at most {outcome.num_steps} steps of {config.batch_size}; step, rate and "
                    f"layer decay selected on {config.holdout:.0%} of the labels, then trained on all of them"
                )
                yield [Scored(key, outcome.scores.astype(np.float64), selected, training)]


class FromScratch(FineTuning):
    """Trains from random weights with the settings `evaluate.supervised`."""

    name = "scratch"
    label = "from scratch, labels only"
    line_style = "-"
    settings = ("supervised",)
    from_scratch = True
    verb = "trained from scratch"
    version = 2  # 2: everything is selected inside the labels

    @property
    def counterpart(self) -> str:
        """A network without pretraining has no frozen features: it is compared with the reference's linear probe."""
        return "linear_probe"

    def starts(
        self, source: Source, problem: Problem, keys: Sequence[CellKey], trainer: label_training.LabelTrainer
    ) -> Mapping[CellKey, label_training.Starts]:
        return {}

    def initial(self, source: Source) -> Callable[[int], PyTree] | None:
        return lambda seed: build.init_params(source.encoder.model, jax.random.key(seed))
