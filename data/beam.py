"""Shards written by an Apache Beam runner: Dataflow, Flink, Spark, or DirectRunner on one machine."""

from collections.abc import Callable, Sequence

from fusionx_jax.errors import InputError, RunError
from fusionx_jax.types import Untyped


def run(work: Callable[[Untyped], Untyped], items: Sequence[Untyped], options: Sequence[str]) -> None:
    """Calls `work` for every item on the runner's workers, which must see the same files.

    Raises:
      InputError: Beam is not installed, or its options are not understood.
      RunError: the pipeline failed; finished shards stay.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError("--beam needs Apache Beam, which is not installed; `pip install apache-beam`.") from error
    if not items:
        return
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            # Reshuffle: without it a runner may fuse all shards into one worker's job.
            _ = pipeline | beam.Create(list(items)) | beam.Reshuffle() | beam.Map(work)
    except (RuntimeError, ValueError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"The Beam pipeline failed ({lines[-1].strip() if lines else type(error).__name__}); finished shards are "
            "kept: run the same command again."
        ) from error
