"""Several processes as one job: `jax.distributed`, started behind an explicit flag and nowhere else."""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np

from fusionx_jax import progress
from fusionx_jax.errors import Failure, InputError, RunError, failure

_ERRORS = "fusionx/errors/"  # keys of the job's store under which processes report their errors
_POLL_S = 1.0
_MEET_S = 5.0  # longest wait for the others to have read an error: job-wide exit must take less than 10 s


@contextlib.contextmanager
def job(args: argparse.Namespace) -> Iterator[None]:
    """Joins the job that the flags describe. An error of one process in the block ends all of them with its message.

    Without --distributed errors are raised as they are.

    Raises:
      InputError, RunError: as `start`.
    """
    start(args)
    if not args.distributed or jax.process_count() == 1:
        yield
        return
    alarm = _Alarm()
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        alarm.report(error)
    finally:
        alarm.stop()


class _Alarm:
    """Exchanges errors between the processes of a job through the key-value store of its coordinator.

    A process that waits in a collective cannot be interrupted from Python, and XLA on CPUs notices a lost peer after
    about 40 s only. So a thread of each process polls for errors of the others, and the process exits from there.
    """

    def __init__(self) -> None:
        # JAX has no public interface to the store; Orbax uses the same attribute.
        from jax._src import distributed

        client = distributed.global_state.client
        assert client is not None  # `start` has joined the job
        self._client = client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._exiting = threading.Lock()  # never released: the thread that has it ends the process
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="errors of other processes", daemon=True).start()

    def stop(self) -> None:
        """Ends the exchange; errors of others are no longer noticed."""
        self._stopped.set()

    def report(self, error: BaseException) -> NoReturn:
        """Reports an error of this process to all, prints it, and exits."""
        self._exiting.acquire()  # an error that follows from another process's is not printed
        reported = failure(error)
        if reported is None and isinstance(error, KeyboardInterrupt):
            reported = Failure(130, "The process was interrupted.")
        if reported is None:
            traceback.print_exception(error)
            reported = Failure(1, f"{type(error).__name__}: {error}")
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the coordinator is gone
            self._client.key_value_set(f"{_ERRORS}{self._index}", json.dumps(reported))
        self._exit(reported)

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_S):
            try:
                errors = self._client.key_value_dir_get(_ERRORS)
            except jax.errors.JaxRuntimeError:  # the job was left, or the coordinator is gone
                return
            if errors:
                key, content = min(errors)
                status, message = json.loads(content)
                index = key.rsplit("/", 1)[-1]
                self._exiting.acquire()
                self._exit(Failure(status, f"Process {index} of {self._count} failed: {message}"))

    def _exit(self, reported: Failure) -> NoReturn:
        """Prints the message and exits once all processes have the error: the first one serves the store."""
        print(f"error: {reported.message}", file=sys.stderr, flush=True)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # a process that ended before is not waited for
            self._client.wait_at_barrier("fusionx/exit", int(1000 * _MEET_S))
        if self._index == 0:
            time.sleep(0.5)  # the others abort natively if the coordinator ends before them
        # Not sys.exit: the main thread may wait in a collective, and JAX would wait for the other processes at exit.
        sys.stdout.flush()
        os._exit(reported.status)


def start(args: argparse.Namespace) -> None:
    """Joins the job; flags that are not given are taken from Slurm, Kubernetes or the TPU environment.

    Raises:
      InputError: flags contradict each other, or too few are given and no scheduler provides them.
      RunError: the coordinator or other processes did not join in time.
    """
    flags = {"coordinator": args.coordinator, "num_processes": args.num_processes, "process_id": args.process_id}
    missing = [f"--{k}" for k, v in flags.items() if v is None]
    if not args.distributed:
        extra = [f"--{k}" for k, v in flags.items() if v is not None]
        if extra:
            raise InputError(f"{', '.join(extra)} given without --distributed; add it, or leave them out.")
        return
    if 0 < len(missing) < len(flags):
        raise InputError(f"{', '.join(missing)} missing; give all three, or none under a scheduler that provides them.")
    if not missing:
        _check_flags(args)
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            _local_device_ids(args),
            initialization_timeout=args.join_timeout,
            heartbeat_timeout_seconds=args.heartbeat_timeout,
        )
    except ValueError as error:  # no flag is given and no scheduler is recognized
        raise InputError(
            f"--distributed found no scheduler ({error}); give --coordinator, --num_processes and --process_id."
        ) from error
    except RuntimeError as error:
        process = "this process" if missing else f"process {args.process_id} of {args.num_processes}"
        raise RunError(
            f"{process} could not join the job at {args.coordinator or 'the address of the scheduler'} within "
            f"{args.join_timeout} s ({str(error).splitlines()[0]}); check that all processes were started and can "
            "reach that host and port."
        ) from error
    progress.logger.info(
        "Process %d of %d on %s: %d of %d devices are local.",
        jax.process_index(),
        jax.process_count(),
        os.uname().nodename,
        jax.local_device_count(),
        jax.device_count(),
    )


def _check_flags(args: argparse.Namespace) -> None:
    if not 0 <= args.process_id < args.num_processes:
        raise InputError(f"--process_id is {args.process_id}; it must lie between 0 and {args.num_processes - 1}.")
    if args.coordinator.count(":") != 1:
        raise InputError(f"--coordinator is {args.coordinator!r}; it must be HOST:PORT.")


def _local_device_ids(args: argparse.Namespace) -> list[int] | None:
    """The GPUs of this process, counted from its rank on the machine; None leaves the choice to JAX (Slurm: one)."""
    if not args.devices_per_process:
        return None
    first = int(os.environ.get("SLURM_LOCALID", "0")) * args.devices_per_process
    return list(range(first, first + args.devices_per_process))


def is_first() -> bool:
    """Whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """A barrier; does nothing in a job of one process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def as_the_first_says(flag: bool) -> bool:
    """The first process's value, in all processes."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def gather(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of one shape in all processes, concatenated along the first axis in the order of the processes."""
    from jax.experimental import multihost_utils

    return dict(multihost_utils.process_allgather(dict(arrays), tiled=True))


def leave() -> None:
    """Waits for all processes, then closes this process's connection to the job."""
    wait_for_all("leaving")
    jax.distributed.shutdown()


def stops_after(step: int) -> bool:
    """Whether every process stops after `step`, because one of them received SIGTERM.

    Processes take steps at slightly different times; the coordinator picks a step that all of them reach.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
