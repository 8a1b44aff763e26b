"""The whole encoder trained on the labels: fine-tuned from its pretrained weights, or trained from scratch."""

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
from fusionx_jax.evaluate.evaluators.checks import check_training
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
    selects_on_validation = True
    needs_training = True
    verb: ClassVar[str] = "fine-tuned"
    version = 2  # 2: starts from the linear probe

    def training_settings(self, config: ConfigDict) -> ConfigDict:
        return config[self.settings[0]]

    def covers(self, config: ConfigDict, task: str) -> bool:
        return task in self.training_settings(config).tasks

    def num_trainings(self, config: ConfigDict) -> int | None:
        return int(self.training_settings(config).seeds)

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        super().check(config, contract)
        check_training(f"evaluate.{self.settings[0]}", self.training_settings(config))
        label_training.Settings.from_config(self.training_settings(config))

    def initial(self, source: Source) -> Callable[[int], PyTree] | None:
        """The parameters to start from, by seed; None starts from the source's own."""
        del source
        return None

    def starts(
        self, source: Source, problem: Problem, keys: Sequence[CellKey]
    ) -> Mapping[CellKey, label_training.LinearStart]:
        """The linear layer to start from, by label subset."""
        return linear_starts(source, problem, keys)

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
        starts = self.starts(source, problem, keys)
        title = f"{source.method} {self.verb}, {labels.name}, {source.modalities.title}"
        with progress.Progress(steps * len(config.learning_rates), title, "step") as bar:
            for key in keys:
                outcome = trainer.train(problem.subsets[key], key.seed, bar, problem.score_split, starts.get(key))
                selected = f"rate {outcome.learning_rate:g} step {outcome.step}"
                origin = " from the linear probe" if key in starts else ""
                training = (
                    f"{self.verb}{origin}, {outcome.num_steps} steps of {config.batch_size}; step and rate selected on "
                    "the validation split"
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
    version = 1

    @property
    def counterpart(self) -> str:
        """A network without pretraining has no frozen features: it is compared with the reference's linear probe."""
        return "linear_probe"

    def starts(
        self, source: Source, problem: Problem, keys: Sequence[CellKey]
    ) -> Mapping[CellKey, label_training.LinearStart]:
        return {}

    def initial(self, source: Source) -> Callable[[int], PyTree] | None:
        return lambda seed: build.init_params(source.encoder.model, jax.random.key(seed))
