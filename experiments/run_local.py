"""A job as processes of this machine: watched, ended together, and resumed by the same command."""

import os
import signal
import socket
import subprocess
import time

from experiments.render import Job
from fusionx_jax import progress
from fusionx_jax.errors import RunError

_GRACE_S = 60.0  # from SIGTERM to SIGKILL: a step and a checkpoint


def run(job: Job) -> int:
    """Runs every command of a job, one after the other, each as `processes_per_node` processes.

    Raises:
      RunError: a process failed; the others were stopped; the output of each is in the job's folder.
    """
    os.makedirs(job.folder, exist_ok=True)
    for number, command in enumerate(job.commands):
        status = _one(job, number, list(command))
        if status:
            return status
    return 0


def _one(job: Job, number: int, command: list[str]) -> int:
    count = job.processes_per_node
    several = []
    if count > 1:
        several = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    environment = {**os.environ, **{k: v for k, v in job.variables.items() if k not in os.environ}}
    processes, logs = [], []
    stopped: list[int] = []
    old = {n: signal.signal(n, lambda received, _: stopped.append(received)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for i in range(count):
            logs.append(os.path.join(job.folder, f"run{number}_process{i}.log"))
            more = [*several, f"--process_id={i}"] if count > 1 else []
            with open(logs[-1], "a", encoding="utf-8") as log:
                processes.append(
                    subprocess.Popen(
                        [job.python, "-m", *command, *more],
                        cwd=job.source, env={**environment, **_devices(job, i)}, stdout=log, stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C reaches the launcher, which forwards it once
                    )
                )  # fmt: skip
        progress.logger.info("%d process(es) started; they write to %s.", count, ", ".join(logs))
        return _watch(processes, logs, stopped)
    finally:
        _end(processes)
        for n, handler in old.items():
            signal.signal(n, handler)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _devices(job: Job, process: int) -> dict[str, str]:
    """Which devices a process sees: its share of the GPUs, or simulated ones on a CPU."""
    share = job.devices_per_node // job.processes_per_node
    if job.accelerator == "gpu" and job.processes_per_node > 1:
        return {"CUDA_VISIBLE_DEVICES": ",".join(str(process * share + k) for k in range(share))}
    if job.accelerator == "cpu" and share > 1:
        return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={share}"}
    return {}


def _watch(processes: list[subprocess.Popen], logs: list[str], stopped: list[int]) -> int:
    """Waits for all; when one fails, stops the others and raises with its name and cause."""
    began, signaled = time.monotonic(), False
    while True:
        if stopped and not signaled:
            signaled = True
            for p in processes:
                if p.poll() is None:
                    p.send_signal(signal.SIGTERM)
        ended = [p.poll() for p in processes]
        failed = {i: status for i, status in enumerate(ended) if status}
        if failed and not stopped:
            # The first to die is the cause; the others follow it within seconds (SIGABRT from the coordinator).
            first, status = next(iter(failed.items()))
            _end(processes)
            raise RunError(
                f"Process {first} of {len(processes)} {_cause(status)} after {time.monotonic() - began:.0f} s; "
                f"the others were stopped. Its last output: {_last_words(logs[first])!r} ({logs[first]}). Run the same "
                "command to resume from the newest checkpoint."
            )
        if None not in ended:
            return max((abs(s) for s in failed.values()), default=0) if stopped else 0
        time.sleep(0.1)


def _end(processes: list[subprocess.Popen]) -> None:
    """SIGTERM to those that run, SIGKILL to those that ignore it: no process outlives the launcher."""
    running = [p for p in processes if p.poll() is None]
    for p in running:
        p.terminate()
    deadline = time.monotonic() + (_GRACE_S if len(running) == len(processes) else 10.0)
    for p in running:
        try:
            p.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()


def _cause(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with status {status}"


def _last_words(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as f:
        lines = [line.strip() for line in f if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing"])[-1][:300]
