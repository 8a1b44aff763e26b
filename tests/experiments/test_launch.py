"""Job files as they are rendered, and a job of two processes on this machine."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from experiments import launch, render
from fusionx_jax import checkpoint
from fusionx_jax.errors import InputError
from tests.helpers import EARLY, ROOT, TINY, assert_clear, run_cli

GOLDEN = Path(__file__).parent / "golden"
JOB = render.Job(
    name="fusionx-ssl4eo", folder="/scratch/ssl4eo/launch", source="/home/me/fusionx",
    commands=tuple(
        ("fusionx_jax", "pretrain", "--config=configs/ssl4eo_s12.py", f"--workdir=/scratch/ssl4eo/seed={s}",
         "--config.dataset=/data/ssl4eo", f"--config.seed={s}")
        for s in (0, 1)
    ),
    nodes=2, image="registry.example/fusionx:1", topology="v5e:16x16", zone="us-west4-a", volume="runs:/scratch",
)  # fmt: skip


def rendered() -> dict[str, str]:
    settings = {  # as experiments.launch sets it
        "queued_resource.sh": {"accelerator": "tpu", "python": "python3", "volume": "gs://mine:/scratch"},
        "task.yaml": {"volume": "s3://mine:/scratch"},
    }
    jobs = {name: render.dataclasses.replace(JOB, **settings.get(name, {})) for _, name in render.TARGETS.values()}
    return {name: text(jobs[name]) for text, name in render.TARGETS.values()}


@pytest.mark.parametrize("name", [name for _, name in render.TARGETS.values()])
def test_job_files_are_those_reviewed(name):
    assert rendered()[name] == (GOLDEN / name).read_text(), "python -m tests.experiments.test_launch writes them anew"


@pytest.mark.parametrize("accelerator", ["gpu", "tpu", "cpu"])
def test_skypilot_accepts_its_task_by_its_own_schema(accelerator):
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed (pip install skypilot)")
    jsonschema = pytest.importorskip("jsonschema")
    task = yaml.safe_load(render.skypilot(render.dataclasses.replace(JOB, accelerator=accelerator)))
    jsonschema.Draft7Validator(schemas.get_task_schema()).validate(task)
    jsonschema.Draft7Validator(schemas.get_resources_schema()).validate(task["resources"])


@pytest.mark.parametrize("accelerator", ["gpu", "tpu", "cpu"])
def test_kubernetes_accepts_the_job_inside_a_jobset(accelerator):
    document = yaml.safe_load(render.jobset(render.dataclasses.replace(JOB, accelerator=accelerator)))
    for replicated in document["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.33", strict=True)


@pytest.mark.parametrize("name", ["job.sbatch", "queued_resource.sh"])
def test_scripts_are_valid_bash(name):
    done = subprocess.run(["bash", "-n"], input=rendered()[name], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_jobset_finds_its_coordinator_and_asks_for_all_chips():
    document = yaml.safe_load(rendered()["jobset.yaml"])
    first = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = first["template"]["spec"]["containers"][0]
    assert first["completions"] == first["parallelism"] == 2
    # Pods are called <jobset>-<replicated job>-<job index>-<pod index>, in the jobset's own subdomain.
    assert "--coordinator=fusionx-ssl4eo-w0-0-0.fusionx-ssl4eo:12421" in container["command"]
    assert container["resources"]["limits"] == {"cpu": "32", "nvidia.com/gpu": "8"}
    tpu = yaml.safe_load(render.jobset(render.dataclasses.replace(JOB, accelerator="tpu")))
    pods = tpu["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert pods["completions"] == 64  # 256 chips, four a host
    one = yaml.safe_load(render.jobset(render.dataclasses.replace(JOB, accelerator="tpu", topology="v5e:1x1")))
    container = one["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["google.com/tpu"] == "1"
    assert pods["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"


def test_every_gpu_of_a_machine_belongs_to_a_process():
    for processes, devices in ((1, 8), (2, 4), (8, 1)):
        script = render.slurm(render.dataclasses.replace(JOB, processes_per_node=processes))
        assert f"--devices_per_process={devices}" in script
    alone = render.slurm(render.dataclasses.replace(JOB, nodes=1))
    assert "--distributed" not in alone  # one process sees all


@pytest.mark.parametrize(
    ("topology", "kind", "hosts"),
    [
        ("v5e:16x16", "v5litepod-256", 64),
        ("v4:4x4x4", "v4-128", 16),
        ("v5p:2x2x1", "v5p-8", 1),
        ("v6e:4x4", "v6e-16", 4),
    ],
)
def test_chips_and_cores_are_told_apart(topology, kind, hosts):
    assert render._tpu_type(topology) == kind
    assert render.tpu_slice(topology)[2] == hosts


def test_what_cannot_be_launched_is_refused(tmp_path, monkeypatch):
    for topology in ("v9:2x2", "v4:axb", "v4", ""):
        with pytest.raises(InputError, match="is not understood"):
            render.tpu_slice(topology)
    with pytest.raises(InputError, match="give --image"):
        render.jobset(render.dataclasses.replace(JOB, image=""))
    for text in (render.jobset, render.skypilot, render.tpu):
        for volume in ("", "runs", "runs:/elsewhere", "runs:scratch"):
            with pytest.raises(InputError, match="storage that outlives the machines"):
                text(render.dataclasses.replace(JOB, volume=volume))
    base = ["slurm", "--config=configs/demo.py", f"--workdir={tmp_path}"]
    for more, words in (
        (["--sweep=seed"], "KEY=A,B"),
        (["--sweep=label_fraction=0.1"], "--command=evaluate"),
        (["--nodes=0"], "--nodes must be at least 1"),
        (["--processes_per_node=3"], "cannot be divided evenly"),
        (["--typo=1"], "'--typo=1' is unknown"),
    ):
        with pytest.raises(InputError, match=words):
            launch.main([*base, *more])
    monkeypatch.setattr(launch.shutil, "which", lambda tool: None)
    with pytest.raises(InputError, match="sbatch is not installed here"):
        launch.main(base)
    assert (tmp_path / "launch/job.sbatch").exists()


def test_a_sweep_has_a_workdir_for_each_point_and_evaluation_all_fractions_at_once(tmp_path, capsys):
    base = [f"--workdir={tmp_path}/w", "--dry_run"]
    launch.main(["local", "--config=configs/demo.py", "--sweep=seed=0,1", "--sweep=mask_ratio=0.6,0.9", *base])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "/w/seed=1_mask_ratio=0.9 " in lines[3] + " "
    launch.main(["local", "--command=evaluate", "--dataset=d", "--sweep=label_fraction=0.01,1.0", *base])
    assert "--config.label_fractions=(0.01,1.0,)" in capsys.readouterr().out


def _launch(workdir, simulated, *more):
    return [
        sys.executable, "-m", "experiments.launch", "local", "--config=configs/demo.py", f"--workdir={workdir}",
        f"--dataset={simulated}", "--accelerator=cpu", "--processes_per_node=2", "--devices_per_node=2", *TINY, *EARLY,
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_is_named_the_rest_end_and_the_same_command_goes_on(simulated, tmp_path):
    workdir = tmp_path / "w"
    command = _launch(workdir, simulated, "--config.num_steps=80", "--config.checkpoint_every=5")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while not any(p.name.isdigit() for p in workdir.glob("checkpoints/*")):
        if time.monotonic() > deadline or process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.1)
    victim = subprocess.run(
        ["pgrep", "-f", "--", f"workdir={workdir} .*process_id=1"], capture_output=True, text=True, check=True
    )
    os.kill(int(victim.stdout.split()[0]), signal.SIGKILL)
    began = time.monotonic()
    printed = process.communicate(timeout=90)[1]
    assert time.monotonic() - began < 60
    assert process.returncode == 1, printed
    assert "Process 1 of 2 was killed by SIGKILL" in printed
    assert "Run the same command" in printed
    assert not subprocess.run(["pgrep", "-f", "--", f"workdir={workdir} "], capture_output=True, check=False).stdout
    before = checkpoint.find(str(workdir)).step
    done = subprocess.run(
        _launch(workdir, simulated, "--config.num_steps=80", "--config.checkpoint_every=100"),
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Resuming at step {before}" in (workdir / "pretrain.log").read_text()
    with open(workdir / "metrics.csv", newline="") as f:
        assert [int(r["step"]) for r in csv.DictReader(f)] == list(range(1, 81))


def test_a_run_that_cannot_start_says_why(tmp_path, simulated):
    done = run_cli(
        "experiments.launch", "local", "--config=configs/demo.py", f"--workdir={tmp_path}", "--dataset=nowhere",
        "--accelerator=cpu", "--devices_per_node=1",
    )  # fmt: skip
    assert_clear(done, 1, "Process 0 of 1 failed with status 2", "nowhere")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (GOLDEN / name).write_text(text)
