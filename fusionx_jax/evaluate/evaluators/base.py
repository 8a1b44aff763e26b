"""What an evaluator is: how a source of features, or an encoder, and label subsets become scores.

Adding one: a class like those beside this file, registered with `register` and imported in `evaluators/__init__.py` (or
by the program that adds it). Planning, checks, settings hashes, running, tables and figures read the registry.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fusionx_jax.contract import Contract, images
from fusionx_jax.encoder import Encoder
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.labels import Labels
from fusionx_jax.evaluate.records import CellKey, ModalitySet
from fusionx_jax.prepared import sets
from fusionx_jax.registry import Registry

TILE_KINDS = ("multi", "single")  # tasks with classes for a whole tile


@dataclasses.dataclass(frozen=True)
class Source:
    """A method or baseline as evaluators see it, given the modalities of `modalities`.

    features(split): frozen features [N, D] of a split. each(split): the features of every modality encoded alone, side
      by side; None for baselines that treat modalities apart anyway.
    encoder: gives tokens, for pixel labels and training; `trainable` is False where it has no parameters.
    """

    method: str
    modalities: ModalitySet
    features: Callable[[str], np.ndarray]
    each: Callable[[str], np.ndarray] | None
    encoder: Encoder
    trainable: bool = True

    @property
    def images(self) -> list[str]:
        """The features of a tile that the encoder reads."""
        return images(self.modalities.available, self.encoder.acquisitions)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One task of a prepared set: its labels, its label subsets (positions of training tiles), and how to evaluate it.

    `config` is the `evaluate` part of a config.
    """

    labels: Labels
    subsets: Mapping[CellKey, np.ndarray]
    config: ConfigDict
    prepared: sets.Readable

    @property
    def score_split(self) -> str:
        return str(self.config.score_split)


class Scored(NamedTuple):
    """The scores of one fit (see `metrics.Scores`), the hyperparameters selected, and how it was trained."""

    key: CellKey
    scores: np.ndarray
    selected: str
    training: str


class Evaluator(abc.ABC):
    """One way to evaluate a representation.

    name, label: key in configs and CSV columns, and name for people.
    line_style: of its lines in figures (matplotlib).
    in_figures: whether label-efficiency figures draw it.
    version: raised when its numbers change for the same settings; kept cells of other versions are measured again.
    settings: the parts of `config.evaluate` that affect its cells alone.
    selects_on_validation: whether it selects hyperparameters on the validation split.
    from_scratch: whether it trains from random weights, so that no pretrained weights are evaluated.
    needs_training: whether it trains the encoder, so that baselines without parameters have no such cells.
    needs_each: whether it reads each modality alone beside all together.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    line_style: ClassVar[str] = "-"
    in_figures: ClassVar[bool] = False
    version: ClassVar[int] = 1
    settings: ClassVar[tuple[str, ...]] = ()
    selects_on_validation: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    needs_each: ClassVar[bool] = False

    @property
    def counterpart(self) -> str:
        """The evaluator of the reference method that this one's cells are compared with."""
        return self.name

    @abc.abstractmethod
    def score_kind(self, task_kind: str) -> str:
        """The kind of its scores (see `metrics.Scores`) on such a task; "" where it does not apply."""

    @abc.abstractmethod
    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        """Fits and scores the label subsets `keys`, in any order and grouping.

        Raises:
          InputError: the data set lacks what it needs.
        """

    def covers(self, config: ConfigDict, task: str) -> bool:
        """Whether the settings (the `evaluate` part of a config) ask for it on this task."""
        del config, task
        return True

    def num_trainings(self, config: ConfigDict) -> int | None:
        """How many label subsets it uses at every budget, all labels included, because its training is random.

        None for evaluators whose result is determined by the labels: they use every label subset, and one with all
        labels, where subsets do not differ.
        """
        del config
        return None

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        """Refuses settings that make no sense or, where it is given, do not fit a prepared set.

        Raises:
          InputError: with the key, its value and what is expected.
        """
        if self.selects_on_validation and config.get("folds", 0):
            raise InputError(
                f"The evaluator {self.name!r} selects hyperparameters on the val split, and evaluate.folds is "
                f"{config.folds}: folds leave none. Leave it out of evaluate.evaluators and evaluate.baselines."
            )
        if contract is not None and self.selects_on_validation and not contract.splits.get("val"):
            raise InputError(
                f"The evaluator {self.name!r} selects hyperparameters on the val split, but {contract.name} has none; "
                "leave it out of evaluate.evaluators and evaluate.baselines, or prepare a val split."
            )


class TileEvaluator(Evaluator):
    """An evaluator of classes for a whole tile, whose scores are of the task's kind."""

    def score_kind(self, task_kind: str) -> str:
        return task_kind if task_kind in TILE_KINDS else ""


EVALUATORS: Registry[Evaluator] = Registry("evaluator")


def register(evaluator: Evaluator) -> Evaluator:
    """Adds an evaluator under its name."""
    return EVALUATORS.register(evaluator.name, evaluator)
