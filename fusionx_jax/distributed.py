"""Several processes as one job: `jax.distributed`, started behind an explicit flag and nowhere else."""

import argparse
import os
from collections.abc import Mapping

import jax
import numpy as np

from fusionx_jax import progress
from fusionx_jax.errors import InputError, RunError


def start(args: argparse.Namespace) -> None:
    """Joins the job; what is not given is found out from Slurm, Kubernetes or the TPU environment.

    Raises:
      InputError: flags that contradict each other, or too few where nothing can be found out.
      RunError: the coordinator or other processes did not come in time.
    """
    given = {"coordinator": args.coordinator, "num_processes": args.num_processes, "process_id": args.process_id}
    if not args.distributed:
        extra = [f"--{k}" for k, v in given.items() if v is not None]
        if extra:
            raise InputError(f"{', '.join(extra)} given without --distributed; add it, or leave them out.")
        return
    some = [v is not None for v in given.values()]
    if any(some) and not all(some):
        lacking = [f"--{k}" for k, v in given.items() if v is None]
        raise InputError(f"{', '.join(lacking)} lacking; give all three, or none where a scheduler tells them.")
    if all(some) and not 0 <= args.process_id < args.num_processes:
        raise InputError(f"--process_id is {args.process_id}; it must lie between 0 and {args.num_processes - 1}.")
    if all(some) and args.coordinator.count(":") != 1:
        raise InputError(f"--coordinator is {args.coordinator!r}; it must be HOST:PORT.")
    own = None
    if args.devices_per_process:  # without it JAX gives a task of Slurm the one GPU of its rank
        first = int(os.environ.get("SLURM_LOCALID", "0")) * args.devices_per_process
        own = list(range(first, first + args.devices_per_process))
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            own,
            initialization_timeout=args.join_timeout,
            heartbeat_timeout_seconds=args.heartbeat_timeout,
        )
    except ValueError as error:  # nothing given and no scheduler recognized
        raise InputError(
            f"--distributed found no scheduler to ask ({error}); give --coordinator, --num_processes and --process_id."
        ) from error
    except RuntimeError as error:
        who = f"process {args.process_id} of {args.num_processes}" if all(some) else "this process"
        raise RunError(
            f"{who} could not join the job at {args.coordinator or 'the address the scheduler gave'} within "
            f"{args.join_timeout} s ({str(error).splitlines()[0]}); check that all processes were started and can "
            "reach that host and port."
        ) from error
    progress.logger.info(
        "Process %d of %d on %s: %d of %d devices are here.",
        jax.process_index(),
        jax.process_count(),
        os.uname().nodename,
        jax.local_device_count(),
        jax.device_count(),
    )


def is_first() -> bool:
    """Whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """A barrier; nothing in a job of one process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def as_the_first_says(flag: bool) -> bool:
    """The first process's answer, in all of them."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def gather(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of one shape in all processes, joined along the first axis in the order of the processes."""
    from jax.experimental import multihost_utils

    return dict(multihost_utils.process_allgather(dict(arrays), tiled=True))


def leave() -> None:
    """Ends the job's connections, once all processes are here."""
    wait_for_all("leaving")
    jax.distributed.shutdown()


def stops_after(step: int) -> bool:
    """Whether every process is to stop after `step`, because one of them was sent SIGTERM.

    Processes take steps at slightly different times; the coordinator picks a step that all reach.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
