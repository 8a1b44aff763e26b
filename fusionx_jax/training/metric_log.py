"""Metrics of a run: `metrics.csv`, and TensorBoard where TensorFlow is installed."""

import csv
import math
import os
from collections.abc import Mapping
from types import TracebackType
from typing import IO

from fusionx_jax import distributed, files, progress

FILE_NAME = "metrics.csv"


class MetricLog:
    """Appends metrics of each logged step to `metrics.csv`; rows after `start` are dropped.

    Of several processes only the first writes.
    """

    def __init__(self, workdir: str, start: int):
        self._board = self._file = None
        if not distributed.is_first():
            return
        self._path = os.path.join(workdir, FILE_NAME)
        self._fields: list[str] | None = None
        if os.path.exists(self._path):
            with open(self._path, newline="", encoding="utf-8") as f:
                rows = list(csv.DictReader(f))
            kept = [r for r in rows if (r.get("step") or "").isdigit() and int(r["step"]) <= start]
            kept = [r for r in kept if None not in r.values()]  # a line that a kill cut short
            self._fields = list(kept[0]) if kept else None
            with files.replacing(self._path, newline="") as f:
                if kept:
                    writer = csv.DictWriter(f, self._fields)
                    writer.writeheader()
                    writer.writerows(kept)
        self._file: IO | None = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (see __exit__)
        try:
            from clu import metric_writers

            self._board = metric_writers.SummaryWriter(os.path.join(workdir, "tensorboard"))
        except ImportError:
            progress.logger.info("TensorFlow is not installed: metrics are written to %s only.", self._path)

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
        """Adds one row; values that are not finite are left out of TensorBoard."""
        if self._file is None:
            return
        row = {"step": step, **values}
        writer = csv.DictWriter(self._file, list(row))
        if self._fields is None:
            self._fields = list(row)
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, {k: v for k, v in values.items() if math.isfinite(v)})
