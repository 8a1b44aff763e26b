"""Submits a rendered job to its scheduler, or finds that it is submitted already."""

import os
import subprocess
from collections.abc import Sequence

from experiments.render import Job
from fusionx_jax import files
from fusionx_jax.errors import RunError

TOOLS = {"slurm": "sbatch", "jobset": "kubectl", "skypilot": "sky", "tpu": "gcloud"}


def write(path: str, text: str) -> None:
    """Writes the job file atomically."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files.replacing(path) as f:
        f.write(text)


def submit(target: str, job: Job, path: str) -> int:
    """Submits a job, or prints that a job of this name exists.

    Raises:
      RunError: the scheduler's tool failed; the message has its output.
    """
    if target == "slurm":
        submitted = _ask(["squeue", "--me", "--noheader", f"--name={job.name}", "--format=%i %T"]).strip()
        if submitted:
            states = "; ".join(submitted.splitlines())
            print(f"{job.name} exists already: {states}. Its output: {job.folder}/slurm-*.out")
            return 0
        number = _ask(["sbatch", "--parsable", path]).strip()
        print(f"Submitted {number} ({job.name}); its output: {job.folder}/slurm-*.out")
    elif target == "jobset":
        # apply is idempotent: a JobSet of this name that is alike is left alone, also one that has ended.
        state = "jsonpath={.status.terminalState}"
        if _ask(["kubectl", "get", "jobset", job.name, "--ignore-not-found", "-o", state]).strip():
            print(_ask(["kubectl", "delete", "jobset", job.name]), end="")
        print(_ask(["kubectl", "apply", "-f", path]), end="")
    elif target == "skypilot":
        submitted = _ask(["sky", "jobs", "queue", "--skip-finished"])
        if job.name in submitted:
            print(f"{job.name} exists already; see it with: sky jobs logs --name {job.name}")
            return 0
        print(_ask(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job.name, path]), end="")
    else:
        return subprocess.run(["bash", path], check=False).returncode  # waits for the slice and follows its output
    return 0


def _ask(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RunError(f"`{' '.join(command)}` failed: {words[-1] if words else f'status {done.returncode}'}")
    return done.stdout
