"""A real Slurm of one node: a two-task pretraining, requeued halfway, against one that ran through."""

import csv
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from experiments.run_local import free_port
from tests.helpers import EARLY, ROOT, TINY

STEPS = ("--config.num_steps=60", "--config.checkpoint_every=5")


def _install() -> None:
    """Slurm and MUNGE from the system's packages, where that is possible."""
    needed = ("sbatch", "slurmctld", "slurmd", "munged")
    if all(shutil.which(n) for n in needed):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("Slurm is not installed, and only root with apt-get can install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, timeout=300, check=False
        )
    if done.returncode or not all(shutil.which(n) for n in needed):
        pytest.skip("Slurm cannot be installed here (apt-get install slurm-wlm munge)")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A controller and one node on this machine, in a folder of their own; gives the environment of its clients."""
    _install()
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
    )
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"],
            ["slurmctld", "-D", "-c", "-f", str(conf)],
            ["slurmd", "-D", "-c", "-f", str(conf)],
        ):  # fmt: skip
            log = open(folder / f"{command[0]}.out", "w")  # noqa: SIM115 (the daemon's)
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(2)
        deadline = time.monotonic() + 60
        while "idle" not in (states := _ask(environment, "sinfo", "--noheader", "--format=%T", check=False)):
            if time.monotonic() > deadline:
                logs = "\n".join((folder / f"{n}.out").read_text()[-800:] for n in ("munged", "slurmctld", "slurmd"))
                pytest.skip(f"Slurm does not come up in this container: {states}\n{logs}")
            time.sleep(1)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _ask(environment, *command, check=True) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def _launch(target, workdir, simulated, environment):
    return subprocess.run(
        [
            sys.executable, "-m", "experiments.launch", target, "--config=configs/demo.py", f"--workdir={workdir}",
            f"--dataset={simulated}", "--accelerator=cpu", "--processes_per_node=2", "--devices_per_node=2", "--cpus=2",
            "--time=00:30:00", *TINY, *EARLY, *STEPS,
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def _losses(workdir):
    with open(workdir / "metrics.csv", newline="") as f:
        return [float(r["loss"]) for r in csv.DictReader(f)]


@pytest.mark.slow
def test_a_job_requeued_halfway_ends_with_the_losses_of_one_that_ran_through(cluster, simulated, tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    done = _launch("slurm", cut, simulated, cluster)
    assert done.returncode == 0, done.stderr
    number = done.stdout.split("Submitted ")[1].split()[0]
    assert "exists already" in _launch("slurm", cut, simulated, cluster).stdout  # idempotent
    deadline = time.monotonic() + 600

    def wait_for(ready, what):
        while not ready():
            logs = [p.read_text()[-1500:] for p in (cut / "launch").glob("slurm-*.out")]
            assert time.monotonic() < deadline, (what, _ask(cluster, "squeue"), logs)
            time.sleep(0.3)

    wait_for(lambda: any(p.name.isdigit() for p in cut.glob("checkpoints/*")), "a checkpoint")
    _ask(cluster, "scontrol", "requeue", number)
    wait_for(lambda: not _ask(cluster, "squeue", "--noheader", f"--jobs={number}", check=False).strip(), "the end")
    assert "Resuming at step" in (cut / "pretrain.log").read_text()
    assert _launch("local", whole, simulated, os.environ).returncode == 0
    assert len(_losses(cut)) == 60
    assert _losses(cut) == pytest.approx(_losses(whole), rel=1e-5)
