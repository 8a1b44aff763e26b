"""Job files for schedulers: plain text from a description of the job, nothing submitted.

Slurm: sbatch(1), srun(1). Kubernetes: JobSet, jobset.x-k8s.io/v1alpha2 (jobset.sigs.k8s.io). SkyPilot: task YAML
(docs.skypilot.co). TPU: queued resources of gcloud (docs.cloud.google.com/tpu/docs/queued-resources).
"""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence

import yaml

from configs import clusters
from fusionx_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, or an array of them (a sweep), and the machines it runs on.

    Attributes:
      name: lower-case letters, digits and dashes: its name in the scheduler.
      commands: arguments after `python -m`, one list a sweep point; alike except for their values.
      accelerator: "cpu", "gpu" or "tpu".
      nodes, processes_per_node, devices_per_node: machines, processes on each, GPUs on each.
      folder: the folder of the rendered file and of the scheduler's output.
      volume: SOURCE:PATH, storage that outlives the machines, for targets where nothing else is shared.
      source: checkout that the job runs in; `python`: its interpreter.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    folder: str
    source: str
    python: str = "python"
    accelerator: str = "gpu"
    nodes: int = 1
    processes_per_node: int = 1
    devices_per_node: int = 8
    cpus: int = 32
    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    at_once: int = 4
    image: str = ""
    topology: str = ""
    kind: str = "H100"
    zone: str = ""
    spot: bool = True
    volume: str = ""

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def variables(self) -> dict[str, str]:
        """The environment of every process."""
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{self.folder}/compiled"}  # a requeued job starts without compiling
        return {**clusters.ENVIRONMENT[self.accelerator], **cache}


class _Plain(yaml.SafeDumper):
    """YAML without anchors, with multi-line text as a block."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Plain.add_representer(
    str, lambda d, s: d.represent_scalar("tag:yaml.org,2002:str", s, style="|" if "\n" in s else None)
)


def _dump(document: Mapping[str, object]) -> str:
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=1000)


def _line(python: str, command: Sequence[str], *more: str) -> str:
    return shlex.join([python, "-m", *command, *more])


def slurm(job: Job) -> str:
    """A batch script: one task a process, all ended when one fails, requeued on preemption and before time runs out."""
    gpus = job.devices_per_node if job.accelerator == "gpu" else 0
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.processes_per_node,
        "cpus-per-task": max(1, job.cpus // job.processes_per_node),
        "gpus-per-node": gpus or None,
        "time": job.time,
        "partition": job.partition or None,
        "account": job.account or None,
        "array": f"0-{len(job.commands) - 1}%{job.at_once}" if len(job.commands) > 1 else None,
        "signal": f"B:USR1@{clusters.WARNING_S}",
        "output": f"{job.folder}/slurm-%A_%a.out" if len(job.commands) > 1 else f"{job.folder}/slurm-%j.out",
        "open-mode": "append",
        "requeue": "",
    }
    head = [f"#SBATCH --{k}={v}" if v != "" else f"#SBATCH --{k}" for k, v in options.items() if v is not None]
    several = ["--distributed", f"--heartbeat_timeout={clusters.HEARTBEAT_S}"] if job.processes > 1 else []
    if several and gpus:
        several.append(f"--devices_per_process={gpus // job.processes_per_node}")
    cases = [f"  {i}) command=({_line(job.python, c, *several)}) ;;" for i, c in enumerate(job.commands)]
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "",
            f"cd {shlex.quote(job.source)}",
            *(f"export {k}={shlex.quote(v)}" for k, v in job.variables.items()),
            'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not take it over (since 22.05)',
            'case "${SLURM_ARRAY_TASK_ID:-0}" in',
            *cases,
            "esac",
            "",
            "# Warned that time runs out: the processes save and leave (143), and the job is handed back to go on from",
            "# there. A job that is canceled gets no such warning; one that is preempted Slurm hands back itself.",
            "warned=0",
            """trap 'warned=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1""",
            "trap '' TERM",
            'srun --kill-on-bad-exit=1 --wait=60 "${command[@]}" &',
            'while wait "$!"; status=$?; [ "$status" -eq 138 ]; do :; done  # 138: USR1 came',
            'if [ "$warned" -eq 1 ] && [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$status"',
            "",
        ]
    )


def jobset(job: Job) -> str:
    """A JobSet with one indexed job per sweep point, restarted as a whole when a pod fails."""
    if not job.image:
        raise InputError("Kubernetes runs images: give --image, one with this checkout and its requirements.")
    pods = tpu_slice(job.topology)[2] if job.accelerator == "tpu" else job.nodes
    document = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": 20},
            "replicatedJobs": [_indexed_job(job, f"w{i}", command, pods) for i, command in enumerate(job.commands)],
        },
    }
    return _dump(document)


def _indexed_job(job: Job, name: str, command: Sequence[str], pods: int) -> dict[str, object]:
    """One sweep point: `pods` pods that run the command as one distributed job."""
    claim, path = volume(job, "--volume=CLAIM:PATH, a persistent volume claim that all pods can write to")
    resources, selector = _pod_accelerators(job)
    container = {
        "name": "fusionx",
        "image": job.image,
        "workingDir": job.source,
        "command": [job.python, "-m", *command, *_join_arguments(job, name, pods)],
        "env": [{"name": k, "value": v} for k, v in job.variables.items()],
        "resources": {"limits": resources},
        "volumeMounts": [{"name": "runs", "mountPath": path}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": clusters.WARNING_S,
        **({"nodeSelector": selector} if selector else {}),
        "containers": [container],
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}],
    }
    spec = {
        "completions": pods,
        "parallelism": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {"name": name, "replicas": 1, "template": {"spec": spec}}


def _pod_accelerators(job: Job) -> tuple[dict[str, str], dict[str, str]]:
    """Resource limits and node selector of a pod."""
    resources = {"cpu": str(job.cpus)}
    if job.accelerator == "gpu":
        return resources | {"nvidia.com/gpu": str(job.devices_per_node)}, {}
    if job.accelerator != "tpu":
        return resources, {}
    generation, topology, _ = tpu_slice(job.topology)
    chips = min(clusters.TPU_CHIPS_PER_HOST, _chips(topology))
    selector = {
        "cloud.google.com/gke-tpu-accelerator": clusters.TPU[generation].gke,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    return resources | {"google.com/tpu": str(chips)}, selector


def _join_arguments(job: Job, name: str, pods: int) -> list[str]:
    """Arguments with which a pod joins the distributed job."""
    if pods == 1:
        return []
    if job.accelerator == "tpu":
        return ["--distributed"]  # JAX reads the rest from the TPU environment
    return [
        "--distributed",
        f"--coordinator={job.name}-{name}-0-0.{job.name}:{clusters.COORDINATOR_PORT}",
        f"--num_processes={pods}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
        f"--heartbeat_timeout={clusters.HEARTBEAT_S}",
    ]


def skypilot(job: Job) -> str:
    """A SkyPilot task; the points of a sweep run one after another on the same machines."""
    bucket, path = volume(job, "--volume=BUCKET:PATH, e.g. s3://mine:/runs or gs://mine:/runs")
    several = []
    if job.nodes > 1:
        several = [
            "--distributed", f"--coordinator=$(echo \"$SKYPILOT_NODE_IPS\" | head -n1):{clusters.COORDINATOR_PORT}",
            "--num_processes=$SKYPILOT_NUM_NODES", "--process_id=$SKYPILOT_NODE_RANK",
            f"--heartbeat_timeout={clusters.HEARTBEAT_S}",
        ]  # fmt: skip
    if job.accelerator == "cpu":
        resources: dict[str, object] = {"cpus": f"{job.cpus}+"}
    elif job.accelerator == "tpu":
        generation, _, _ = tpu_slice(job.topology)
        resources = {"accelerators": f"tpu-{_tpu_type(job.topology)}:1"}
        resources["accelerator_args"] = {"runtime_version": clusters.TPU[generation].runtime}
    else:
        resources = {"accelerators": f"{job.kind}:{job.devices_per_node}"}
    extra = {"gpu": "[cuda,input]", "tpu": "[tpu,input]", "cpu": "[input]"}[job.accelerator]
    runs = [" ".join([_line("python", c), *several]) for c in job.commands]
    document = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": {**resources, "use_spot": job.spot, "job_recovery": {"strategy": "FAILOVER"}},
        "workdir": job.source,
        "file_mounts": {path: {"source": bucket, "mode": "MOUNT"}},
        "envs": dict(job.variables),
        "setup": f"pip install -e '.{extra}'\n",
        "run": "set -e\n" + "\n".join(runs) + "\n",
    }
    return _dump(document)


def tpu(job: Job) -> str:
    """A shell script: asks for a slice, waits for it, and runs the command on all its hosts."""
    if not job.zone:
        raise InputError("A TPU lives in a zone: give --zone, e.g. --zone=us-central2-b.")
    generation, _, hosts = tpu_slice(job.topology)
    bucket, path = volume(job, "--volume=gs://BUCKET:PATH, mounted by gcsfuse on every host")
    variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in job.variables.items())
    several = ["--distributed"] if hosts > 1 else []
    run = " && ".join(_line(job.python, c, *several) for c in job.commands)
    mount = f"sudo mkdir -p {path} && sudo chmod 777 {path}"
    mount += f" && (mountpoint -q {path} || gcsfuse --implicit-dirs {shlex.quote(bucket.removeprefix('gs://'))} {path})"
    packed = f"{job.name}.tgz"
    install = f"mkdir -p {job.name} && tar -xzf {packed} -C {job.name} && cd {job.name}"
    install += f" && {job.python} -m pip install --quiet -e '.[tpu,input]'"
    remote = f"{mount} && {install} && export {variables} && {run}"
    return "\n".join(
        [
            "#!/bin/bash",
            "# The same command again waits for the same slice and resumes from the newest checkpoint.",
            "set -euo pipefail",
            f"name={job.name} zone={shlex.quote(job.zone)}",
            "describe() {",
            '  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"',
            "}",
            "state=$(describe 2>/dev/null) || state=NONE",
            'if [ "$state" = SUSPENDED ] || [ "$state" = FAILED ]; then  # preempted: it never comes back by itself',
            '  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet',
            "  state=NONE",
            "fi",
            'if [ "$state" = NONE ]; then',
            '  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \\',
            f"    --accelerator-type={_tpu_type(job.topology)} --runtime-version={clusters.TPU[generation].runtime}"
            + (" --spot" if job.spot else ""),
            "fi",
            'until state=$(describe) && [ "$state" = ACTIVE ]; do',
            '  case "$state" in SUSPENDED|FAILED) echo "$name is $state; run this again." >&2; exit 1 ;; esac',
            '  echo "$(date) $state"; sleep 30',
            "done",
            f"tar -C {shlex.quote(job.source)} --exclude=./.git --exclude='./.venv*' --exclude=./runs "
            f"-czf {shlex.quote(job.folder + '/' + packed)} .",
            f'gcloud compute tpus tpu-vm scp {shlex.quote(job.folder + "/" + packed)} "$name": \\',
            '  --zone="$zone" --worker=all',
            'gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \\',
            f"  --command={shlex.quote(remote)}",
            "",
        ]
    )


def volume(job: Job, how: str) -> tuple[str, str]:
    """The source and mount point of --volume: preemptible machines keep and share nothing else.

    Raises:
      InputError: the job has none, or its workdir lies elsewhere.
    """
    source, _, path = job.volume.rpartition(":")
    folder = os.path.normpath(job.folder)
    if not source or not os.path.isabs(path) or os.path.commonpath([folder, path]) != os.path.normpath(path):
        raise InputError(
            f"The workdir must lie on storage that outlives the machines: give {how}, with the workdir inside PATH "
            f"(--volume is {job.volume!r}, the job's folder {folder})."
        )
    return source, path


def tpu_slice(topology: str) -> tuple[str, str, int]:
    """Generation, chip grid and hosts of a slice such as "v5e:16x16".

    Raises:
      InputError: an unknown generation or a grid that does not exist.
    """
    generation, _, grid = topology.partition(":")
    sides = grid.split("x")
    if generation not in clusters.TPU or not all(s.isdigit() and int(s) for s in sides) or len(sides) not in (2, 3):
        raise InputError(
            f"The topology {topology!r} is not understood; give GENERATION:GRID of chips, e.g. v5e:16x16 or v4:4x4x4 "
            f"({', '.join(clusters.TPU)})."
        )
    return generation, grid, max(1, _chips(grid) // clusters.TPU_CHIPS_PER_HOST)


def _chips(grid: str) -> int:
    count = 1
    for side in grid.split("x"):
        count *= int(side)
    return count


def _tpu_type(topology: str) -> str:
    """The accelerator type of a slice."""
    generation, grid, _ = tpu_slice(topology)
    return f"{clusters.TPU[generation].type}-{_chips(grid) * clusters.TPU[generation].counted_cores}"


TARGETS = {
    "slurm": (slurm, "job.sbatch"),
    "jobset": (jobset, "jobset.yaml"),
    "skypilot": (skypilot, "task.yaml"),
    "tpu": (tpu, "queued_resource.sh"),
}
