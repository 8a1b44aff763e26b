"""Metrics of a run: `metrics.csv`, and TensorBoard where TensorFlow is installed.

At an address nothing can be appended to `metrics.csv`: the file is rewritten at each checkpoint and at the end, so that
it holds every row up to the checkpoint from which a run resumes.
"""

import csv
import io
import math
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from fusionx_jax import distributed, files, progress

if TYPE_CHECKING:
    from clu import metric_writers

FILE_NAME = "metrics.csv"


class MetricLog:
    """Adds a row for each logged step to `metrics.csv`; rows after step `start` are dropped.

    Of several processes only the first writes.
    """

    def __init__(self, workdir: str, start: int):
        self._file: files.Appender | None = None
        self._board: metric_writers.SummaryWriter | None = None
        self._fields: list[str] | None = None
        if not distributed.is_first():
            return
        path = files.join(workdir, FILE_NAME)
        if files.exists(path):
            self._fields = _drop_rows_after(path, start)
        self._file = files.Appender(path, newline="")
        if self._file.rewrites:
            progress.logger.info("%s cannot be appended to: it is rewritten at each checkpoint.", path)
        self._board = _tensorboard(workdir)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.flush()
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row; TensorBoard gets the finite values."""
        if self._file is None:
            return
        row = {"step": step, **values}
        writer = csv.DictWriter(self._file, list(row))
        if self._fields is None:
            self._fields = list(row)
            writer.writeheader()
        writer.writerow(row)
        if not self._file.rewrites:
            self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, {k: v for k, v in values.items() if math.isfinite(v)})

    def flush(self) -> None:
        """Makes all rows visible to readers."""
        if self._file is not None:
            self._file.flush()


def _drop_rows_after(path: str, step: int) -> list[str] | None:
    """Drops rows after `step`, and one that a kill cut short. Returns the header; None if no row is left."""
    rows = list(csv.DictReader(io.StringIO(files.read_text(path), newline="")))
    rows = [r for r in rows if (r.get("step") or "").isdigit() and int(r["step"]) <= step]
    rows = [r for r in rows if None not in r.values()]
    with files.replacing(path, newline="") as f:
        if rows:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return list(rows[0]) if rows else None


def _tensorboard(workdir: str) -> "metric_writers.SummaryWriter | None":
    """A TensorBoard writer where TensorFlow is installed and can write to the workdir."""
    try:
        import tensorflow as tf
        from clu import metric_writers
    except ImportError:
        progress.logger.info("TensorFlow is not installed: metrics are written to %s only.", FILE_NAME)
        return None
    try:
        return metric_writers.SummaryWriter(files.join(workdir, "tensorboard"))
    except tf.errors.OpError as error:
        line = str(error.message).splitlines()[0].rpartition("}} ")[2]
        progress.logger.warning("TensorFlow cannot write to %s: metrics are in %s only (%s).", workdir, FILE_NAME, line)
        return None
