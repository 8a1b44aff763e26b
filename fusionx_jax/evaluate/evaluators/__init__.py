"""The evaluators, one file each; importing this package registers them in table order."""

from fusionx_jax.evaluate.evaluators.base import EVALUATORS, Evaluator, Problem, Scored, Source, register
from fusionx_jax.evaluate.evaluators.cover import RidgeCover
from fusionx_jax.evaluate.evaluators.forest import RandomForest
from fusionx_jax.evaluate.evaluators.knn import NearestNeighbors
from fusionx_jax.evaluate.evaluators.probe import (
    LinearProbe,
    LinearProbeApart,
    LinearProbeComponents,
    LinearProbeEach,
    LinearProbeValidation,
)
from fusionx_jax.evaluate.evaluators.segment import SegmentDecoder, SegmentLinear
from fusionx_jax.evaluate.evaluators.train import FineTuning, FromScratch

__all__ = ["EVALUATORS", "Evaluator", "Problem", "Scored", "Source", "register"]

for _evaluator in (
    LinearProbe(),
    LinearProbeEach(),
    LinearProbeApart(),
    LinearProbeComponents(),
    LinearProbeValidation(),
    NearestNeighbors(),
    RandomForest(),
    FineTuning(),
    FromScratch(),
    RidgeCover(),
    SegmentLinear(),
    SegmentDecoder(),
):
    register(_evaluator)
