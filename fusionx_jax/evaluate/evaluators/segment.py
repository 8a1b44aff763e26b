"""Pixel labels from frozen patch tokens: a linear head, or a light decoder; see `evaluate.segmentation`."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from ml_collections import ConfigDict

from fusionx_jax import progress
from fusionx_jax.contract import Contract
from fusionx_jax.evaluate import batches, segmentation
from fusionx_jax.evaluate.evaluators.base import Evaluator, Problem, Scored, Source
from fusionx_jax.evaluate.evaluators.checks import check_training
from fusionx_jax.evaluate.records import CellKey


class SegmentLinear(Evaluator):
    """A linear head, trained with the settings `evaluate.segmentation`."""

    name = "segment_linear"
    label = "linear head"
    in_figures = True
    settings = ("segmentation",)
    head: ClassVar[str] = "linear"

    def score_kind(self, task_kind: str) -> str:
        return "pixel" if task_kind == "pixel" else ""

    def num_trainings(self, config: ConfigDict) -> int | None:
        return int(config.segmentation.seeds)

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        super().check(config, contract)
        check_training("evaluate.segmentation", config.segmentation)

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        settings, labels = problem.config.segmentation, problem.labels
        trainer = segmentation.HeadTrainer(
            source.encoder,
            batches.DeviceReader(problem.prepared, [*source.images, labels.feature]),
            labels.feature,
            len(labels.classes),
            segmentation.Settings.from_config(settings),
            head=self.head,
        )
        title = f"{source.method} {self.label}, {source.modalities.title}"
        training = f"{self.label} on frozen tokens, {settings.num_steps} steps of {settings.batch_size}"
        with progress.Progress(len(keys) * settings.num_steps, title, "step") as bar:
            for key in keys:
                params = trainer.train(problem.subsets[key], key.seed, bar)
                confusion = trainer.confusion(params, problem.score_split)
                yield [Scored(key, confusion, f"rate {settings.learning_rate:g}", training)]


class SegmentDecoder(SegmentLinear):
    """A light decoder with the same settings."""

    name = "segment_decoder"
    label = "light decoder"
    line_style = "--"
    in_figures = False
    head = "decoder"
