"""Sources of features: the trained encoder, and the baselines that it is compared with.

Baselines are what everybody has without pretraining: the same encoder untrained, per-band statistics, and the same
network trained from scratch on the labels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import encoder as encoder_lib
from fusionx_jax.encoder import Encoder
from fusionx_jax.evaluate import features, rows
from fusionx_jax.evaluate.evaluation import Evaluation
from fusionx_jax.evaluate.evaluators import Source
from fusionx_jax.evaluate.records import Method, ModalitySet
from fusionx_jax.models import peers
from fusionx_jax.registry import Registry


class Baseline(NamedTuple):
    """A baseline: how its source is made, and the one evaluator that it has ("": those of the method).

    `encodes` is False where its features are statistics of the pixels, so that pooling and weights do not apply. It
    applies to labels of at least `acquisitions` dates, and to pixel labels unless `tiles_only`.
    """

    make: Callable[..., Source]  # (evaluation, modalities, acquisitions)
    evaluator: str = ""
    encodes: bool = True
    acquisitions: int = 1
    tiles_only: bool = False


BASELINES: Registry[Baseline] = Registry("baseline")


def method_source(
    evaluation: Evaluation, name: str, modalities: ModalitySet, acquisitions: int = 1, together: bool = False
) -> Source:
    """The method whose weights are evaluated; for `together` see `features.extract`."""
    encoder = dataclasses.replace(evaluation.trained, acquisitions=acquisitions)
    return _encoder_source(evaluation, name, encoder, modalities, together)


def untrained(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 1, together: bool = False) -> Source:
    """The same encoder with its initial weights."""
    encoder = dataclasses.replace(evaluation.untrained, acquisitions=acquisitions)
    return _encoder_source(evaluation, "untrained", encoder, modalities, together)


def band_statistics(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 1) -> Source:
    """Mean and deviation of every band, over the tile for tile labels and over each patch for pixel labels."""
    compute = functools.partial(features.band_statistics, acquisitions=acquisitions)
    return _statistics_source(evaluation, "band_statistics", modalities, acquisitions, compute, alone=True)


def texture(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 1) -> Source:
    """Band statistics and texture."""
    compute = functools.partial(features.texture, acquisitions=acquisitions)
    return _statistics_source(evaluation, "texture", modalities, acquisitions, compute, alone=True)


def difference_of_means(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 2) -> Source:
    """What changed between two dates in the mean of every band."""
    return _statistics_source(evaluation, "difference_of_means", modalities, acquisitions, features.difference_of_means)


def change_vector(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 2) -> Source:
    """Change vector analysis between two dates."""
    return _statistics_source(evaluation, "change_vector", modalities, acquisitions, features.change_vector)


def _statistics_source(
    evaluation: Evaluation,
    name: str,
    modalities: ModalitySet,
    acquisitions: int,
    compute: Callable[..., np.ndarray],
    alone: bool = False,
) -> Source:
    """Statistics of the pixels; those of each modality `alone` are kept for other sets of modalities."""
    trained = evaluation.trained
    model = peers.PatchStatistics(trained.model.config)
    plain = dataclasses.replace(trained, model=model, params={}, zeros=(), acquisitions=acquisitions)

    def kept(split: str, names: tuple[str, ...]) -> np.ndarray:
        key = (name, acquisitions, split, names)
        if key not in evaluation.statistics:
            evaluation.statistics[key] = compute(evaluation.prepared, split, names)
        return evaluation.statistics[key]

    def statistics(split: str) -> np.ndarray:
        if not alone:
            return kept(split, modalities.available)
        return np.concatenate([kept(split, (m,)) for m in modalities.available], axis=1)

    return Source(name, modalities, functools.cache(statistics), None, plain, trainable=False)


def supervised(evaluation: Evaluation, modalities: ModalitySet, acquisitions: int = 1) -> Source:
    """The same network, to be trained from scratch; it has no features without labels."""
    zeros = _zeros(evaluation, modalities)
    encoder = dataclasses.replace(evaluation.trained, zeros=zeros, acquisitions=acquisitions)
    return Source("supervised", modalities, _no_features, None, encoder)


def _no_features(split: str) -> np.ndarray:
    raise ValueError(f"a network trained from scratch has no features of the {split} split")


def _encoder_source(
    evaluation: Evaluation, name: str, encoder: Encoder, modalities: ModalitySet, together: bool
) -> Source:
    config = evaluation.config

    def pooled(split: str, encoder: Encoder, given: Sequence[str]) -> np.ndarray:
        pools = features.extract(
            encoder, evaluation.prepared, split, given, config.evaluate.batch_size, evaluation.feature_cache,
            f"{name} features", together,
        )  # fmt: skip
        return np.asarray(encoder_lib.assemble(pools, config.evaluate.pooling))

    @functools.cache
    def each(split: str) -> np.ndarray:
        alone = [ModalitySet((m,)) for m in modalities.available]
        parts = [pooled(split, dataclasses.replace(encoder, zeros=_zeros(evaluation, m)), m.available) for m in alone]
        return np.concatenate(parts, axis=1)

    filled = dataclasses.replace(encoder, zeros=_zeros(evaluation, modalities))
    joint = functools.cache(lambda split: pooled(split, filled, modalities.available))
    return Source(name, modalities, joint, each, filled)


def _zeros(evaluation: Evaluation, modalities: ModalitySet) -> tuple[str, ...]:
    """The modalities to fill with zeros: all that are missing where the network has no other way."""
    if evaluation.fills_zeros:
        return tuple(m for m in evaluation.config.modalities if m not in modalities.available)
    return modalities.zero_filled


def context(evaluation: Evaluation, method: Method) -> rows.Context:
    """What the rows of the evaluated method, or of a baseline, state beside their cells."""
    contract = evaluation.prepared.contract
    context = rows.Context(
        dataset=contract.name,
        simulated=contract.simulated,
        num_train=contract.splits["train"],
        unscored=evaluation.unscored_classes(),
        pooling=evaluation.config.evaluate.pooling,
        checkpoint=evaluation.saved.path,
        config_hash=evaluation.weights_hash,
    )
    return context if method == evaluation.method else baseline_context(context, method)._replace(checkpoint="")


def baseline_context(context: rows.Context, method: Method) -> rows.Context:
    """The context of a baseline that was measured beside a method; pooling does not apply to statistics of pixels."""
    pools = method.name not in BASELINES or BASELINES[method.name].encodes
    return context if pools else context._replace(pooling="")


BASELINES.register("untrained", Baseline(untrained))
BASELINES.register("band_statistics", Baseline(band_statistics, encodes=False))
BASELINES.register("texture", Baseline(texture, encodes=False, tiles_only=True))
BASELINES.register("texture_forest", Baseline(texture, "random_forest", encodes=False, tiles_only=True))
for _name, _make in (("difference_of_means", difference_of_means), ("change_vector", change_vector)):
    BASELINES.register(_name, Baseline(_make, encodes=False, acquisitions=2, tiles_only=True))
BASELINES.register("supervised", Baseline(supervised, evaluator="scratch"))
