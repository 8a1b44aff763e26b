"""The training loop: steps, logging one step late, checkpoints, and stopping on a signal.

Metrics are fetched one step late, so that the device computes the next step while the host waits for the last one.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType

import jax
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, distributed, progress
from fusionx_jax.errors import RunError
from fusionx_jax.prepared import pipeline
from fusionx_jax.training.metric_log import MetricLog
from fusionx_jax.training.objective import Metrics
from fusionx_jax.training.state import TrainState
from fusionx_jax.training.step import Step

_WAIT_WARNING = 0.05  # share of the time waiting for input above which the log warns: the project's own choice


class Loop:
    """Trains one run to `num_steps`. `steps` are the compiled train steps by the step from which each applies."""

    def __init__(
        self,
        config: ConfigDict,
        steps: Mapping[int, Step],
        batches: pipeline.DeviceBatches,
        manager: checkpoint.Manager,
        metric_log: MetricLog,
    ):
        self._num_steps, self._log_every = config.num_steps, config.log_every
        self._checkpoint_every = config.checkpoint_every
        self._steps, self._batches, self._manager, self._metric_log = steps, batches, manager, metric_log
        self._clock = Clock(config.batch_size, batches)

    def run(self, state: TrainState, start: int, stop: "StopSignals") -> int:
        """Takes the steps after `start`. Returns an exit status: 0, or 128 + the signal that stopped the run.

        Raises:
          RunError: the loss or the gradient is not finite, or a checkpoint cannot be written.
        """
        pending: Metrics | None = None  # metrics of the last step, not fetched yet
        note = ""
        with progress.Progress(self._num_steps, "pretraining", "step", start) as bar:
            for step in range(start + 1, self._num_steps + 1):
                batch = next(self._batches)
                state, metrics = self._step_at(step)(state, batch)
                if pending is not None:
                    note = self._log(step - 1, pending)
                pending = metrics
                bar.advance(1, note)
                stopping = stop.after(step)
                if stopping or step % self._checkpoint_every == 0 or step == self._num_steps:
                    note = self._log(step, metrics)  # a state is saved only if its loss and gradient are finite
                    pending = None
                    self._save(step, state, wait=stopping or step == self._num_steps)
                if stopping and stop.received is not None:
                    progress.logger.info(
                        "Stopped by %s at step %d of %d; run the same command to resume.",
                        stop.received,
                        step,
                        self._num_steps,
                    )
                    return 128 + int(stop.received)
        self._warn_if_input_bound()
        return 0

    def _step_at(self, step: int) -> Step:
        # Steps count from 1, stages from 0.
        return self._steps[max(first for first in self._steps if first < step)]

    def _log(self, step: int, metrics: Metrics) -> str:
        """Checks and logs the metrics of a step. Returns the note for the progress bar."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            kept = self._manager.latest_step()
            raise RunError(
                f"Training diverged at step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. "
                + (f"The checkpoint of step {kept} is kept; " if kept else "No checkpoint was made yet; ")
                + "lower optimizer.learning_rate or check the data, and use a new workdir."
            )
        if step % self._log_every == 0 or step == self._num_steps:
            self._metric_log.write(step, values | self._clock.lap(step))
        return f"loss {values['loss']:.4f}"

    def _save(self, step: int, state: TrainState, wait: bool) -> None:
        self._metric_log.flush()  # first: a resumed run writes only rows after the checkpoint
        began = time.perf_counter()
        self._manager.save(step, state, wait=wait)
        seconds = time.perf_counter() - began
        progress.logger.info("Checkpoint of step %d: training paused for %.2f s.", step, seconds)

    def _warn_if_input_bound(self) -> None:
        share = self._clock.wait_share()
        if share > _WAIT_WARNING:
            progress.logger.warning(
                "Training waited for input %.0f %% of the time; put the prepared set on a local disk, leave memory "
                "free for the page cache, and compare with `fusionx bench input`.",
                100 * share,
            )


class Clock:
    """Examples per second, and the share of the time spent waiting for input."""

    def __init__(self, batch_size: int, batches: pipeline.DeviceBatches):
        self._batch_size, self._batches = batch_size, batches
        self._began = self._lap_began = time.perf_counter()
        self._waited_at_start = self._waited = batches.waited_s
        self._step: int | None = None

    def lap(self, step: int) -> dict[str, float]:
        """The values since the last lap. The rate of the first lap is NaN, because it includes compilation."""
        now, waited = time.perf_counter(), self._batches.waited_s
        seconds = max(now - self._lap_began, 1e-9)
        steps = step - self._step if self._step is not None else None
        values = {
            "pairs_per_s": steps * self._batch_size / seconds if steps else float("nan"),
            "input_wait_share": (waited - self._waited) / seconds,
        }
        self._lap_began, self._waited, self._step = now, waited, step
        return values

    def wait_share(self) -> float:
        """The share since the beginning."""
        seconds = time.perf_counter() - self._began
        return (self._batches.waited_s - self._waited_at_start) / max(seconds, 1e-9)


class StopSignals:
    """Records SIGTERM (a scheduler's preemption) and Ctrl-C, so that the run stops after the current step."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupted = False
        self._several = jax.process_count() > 1
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            # With several processes the coordinator handles SIGTERM, so that all stop after the same step.
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def after(self, step: int) -> bool:
        """Whether to stop after `step`."""
        if self._several and distributed.stops_after(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:  # the second signal stops at once
            raise KeyboardInterrupt
        self._interrupted = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.received = signal.Signals(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
