"""Several processes as one job, each with two simulated devices, over the loopback."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments.run_local import free_port
from fusionx_jax import checkpoint, config, contract, readback
from fusionx_jax.errors import RunError
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.models import build
from tests.helpers import EARLY, ROOT, TINY, assert_clear, run_cli

# Sums over devices come in another order: float32 round-off, grown over six steps.
TOLERANCE = 2e-4


# The test network has no array of 4 MB, the size from which parameters are split.
COMMAND = """
import sys
from fusionx_jax import __main__, sharding
sharding.REPLICATED_BYTES = 1 << 16
sys.exit(__main__.main())
"""


def start(workdir, simulated, processes, *more, devices=2, last=(COMMAND,)):
    """`fusionx pretrain` in `processes` processes of `devices` devices each; the last one may run another script."""
    command = [
        "pretrain", "--config=configs/demo.py", f"--workdir={workdir}", *TINY, *EARLY, f"--config.dataset={simulated}",
    ]  # fmt: skip
    return start_command([*command, *more], processes, devices, last)


def start_command(command, processes, devices=2, last=(COMMAND,)):
    port = free_port()
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    joined = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [
                sys.executable, "-c", *(last if i == processes - 1 else (COMMAND,)), *command,
                *([*joined, f"--process_id={i}", "--heartbeat_timeout=10"] if processes > 1 else []),
            ],
            cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(started, status=0, timeout=600):
    printed = [p.communicate(timeout=timeout)[1] for p in started]
    assert [p.returncode for p in started] == [status] * len(started), "\n----\n".join(printed)[-4000:]
    return printed


def losses(workdir):
    with open(workdir / "metrics.csv", newline="") as f:
        return [float(r["loss"]) for r in csv.DictReader(f)]


def params(workdir):
    saved = checkpoint.find(str(workdir))
    model = build.make_model(config.from_json(saved.config), saved.contract.modalities)
    return checkpoint.load_params(saved, jax.eval_shape(lambda: build.init_params(model, jax.random.key(0))))


@pytest.mark.slow
def test_two_processes_follow_one_and_go_on_from_each_others_checkpoints(simulated, tmp_path):
    one = tmp_path / "one"
    finish(start(one, simulated, 1, devices=1))
    for mesh in (("--config.mesh.data=-1",), ("--config.mesh.data=2", "--config.mesh.fsdp=2")):
        two = tmp_path / mesh[-1].replace("/", "")
        printed = finish(start(two, simulated, 2, *mesh))
        assert losses(two) == pytest.approx(losses(one), rel=TOLERANCE)
        assert "Process 1 of 2" in printed[1]
        assert (two / "pretrain.1.log").exists()
    # Cut after four steps of six: two processes' checkpoint goes on in one, on one device.
    for step in ("6",):
        (two / "checkpoints" / step).rename(tmp_path / "gone")
    finish(start(two, simulated, 1, "--config.mesh.data=1", "--config.mesh.fsdp=1", devices=1))
    assert losses(two) == pytest.approx(losses(one), rel=TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), params(two), params(one))
    # And one of eight devices in one process goes on in two.
    eight = tmp_path / "eight"
    finish(start(eight, simulated, 1, "--config.mesh.data=2", "--config.mesh.fsdp=4", devices=8))
    (eight / "checkpoints/6").rename(tmp_path / "gone too")
    finish(start(eight, simulated, 2, "--config.mesh.data=2", "--config.mesh.fsdp=2"))
    assert losses(eight) == pytest.approx(losses(one), rel=TOLERANCE)


@pytest.mark.slow
def test_two_processes_encode_every_tile_once(trained, simulated, tmp_path):
    """140 and 40 tiles do not divide by three processes."""
    rows = {}
    for processes in (1, 3):
        workdir = tmp_path / str(processes)
        shutil.copytree(trained, workdir)
        command = [
            "evaluate",
            f"--workdir={workdir}",
            f"--dataset={simulated}",
            "--config.evaluate.baselines=('untrained',)",
        ]
        finish(start_command(command, processes))
        rows[processes] = rows_lib.read(str(workdir / "results.csv"))
        assert len(list((workdir / "features").iterdir())) == 2 * 2 * 2  # encoders, sets of sensors, splits
    assert len(rows[1]) == len(rows[3]) > 0
    for a, b in zip(rows[1], rows[3]):
        assert (a.method, a.label, a.metric) == (b.method, b.label, b.metric)
        assert a.value == pytest.approx(b.value, abs=1e-3)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step_and_the_run_goes_on(simulated, tmp_path):
    more = ("--config.num_steps=400", "--config.checkpoint_every=1000")
    started = start(tmp_path / "w", simulated, 2, *more)
    deadline = time.monotonic() + 400
    while not (tmp_path / "w/metrics.csv").exists() or len((tmp_path / "w/metrics.csv").read_text().splitlines()) < 4:
        if time.monotonic() > deadline or any(p.poll() is not None for p in started):
            raise AssertionError(finish(started))
        time.sleep(0.1)
    started[1].send_signal(signal.SIGTERM)
    printed = finish(started, 143)
    assert all("Stopped by" in s and "run the same command to resume" in s for s in printed)
    step = checkpoint.find(str(tmp_path / "w")).step
    assert 3 <= step < 400
    assert len(losses(tmp_path / "w")) <= step


FAILING = """
import sys, time
from fusionx_jax import __main__, errors
from fusionx_jax.prepared import sets, store
place, stamp = sys.argv[1:3]
del sys.argv[1:3]
def fail():
    with open(stamp, "w") as f:
        f.write(str(time.time()))
    raise errors.InputError("The shard is damaged; prepare the set again.")
calls, read = 0, store.PreparedSet.read
def read_ten_times(*arguments):
    global calls
    calls += 1
    return read(*arguments) if calls <= 10 else fail()
if place == "open":
    sets.open_for = lambda *_: fail()
else:
    store.PreparedSet.read = read_ten_times
sys.exit(__main__.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["open", "read"])
def test_an_error_of_one_process_ends_all_with_its_message_in_ten_seconds(simulated, tmp_path, place):
    """Before the first step, while the other process waits at a barrier, and in a later one, in a collective."""
    stamp = tmp_path / "stamp"
    started = start(
        tmp_path / "w", simulated, 2, "--config.num_steps=4000", "--config.checkpoint_every=4000",
        last=(FAILING, place, str(stamp)),
    )  # fmt: skip
    errors = finish(started, 2)
    assert time.time() - float(stamp.read_text()) < 10
    assert "error: Process 1 of 2 failed: The shard is damaged; prepare the set again." in errors[0]
    assert "error: The shard is damaged; prepare the set again." in errors[1]
    assert "Traceback" not in errors[0], errors[0]


ANOTHER_DISK = """
import sys
from fusionx_jax import __main__
sys.argv = [a + "_not_shared" if a.startswith("--workdir=") else a for a in sys.argv]
sys.exit(__main__.main())
"""


@pytest.mark.slow
def test_a_workdir_that_a_process_does_not_see_ends_all_before_training(simulated, tmp_path):
    errors = finish(start(tmp_path / "w", simulated, 2, last=(ANOTHER_DISK,)), 2)
    for printed in errors:
        assert f"Process 1 does not see the workdir {tmp_path / 'w_not_shared'}" in printed
        assert "Traceback" not in printed, printed
    assert not (tmp_path / "w" / "metrics.csv").exists()
    assert not (tmp_path / "w_not_shared").exists()


def test_flags_that_make_no_job_are_refused(tmp_path):
    base = ("fusionx_jax", "pretrain", "--config=configs/demo.py", f"--workdir={tmp_path / 'w'}")
    assert_clear(run_cli(*base, "--process_id=0"), 2, "--process_id given without --distributed")
    assert_clear(run_cli(*base, "--distributed", "--num_processes=2"), 2, "--coordinator, --process_id missing")
    both = ("--distributed", "--num_processes=2", "--coordinator=127.0.0.1:1")
    assert_clear(run_cli(*base, *both, "--process_id=2"), 2, "must lie between 0 and 1")
    alone = run_cli(
        *base, "--distributed", "--num_processes=2", f"--coordinator=127.0.0.1:{free_port()}", "--process_id=0",
        "--join_timeout=3",
    )  # fmt: skip
    assert alone.returncode != 0
    assert not (tmp_path / "w").exists()


def test_a_process_of_a_job_has_checkpoints_read_by_another_one(simulated, tmp_path, monkeypatch, caplog):
    state = {"params": {"w": jax.numpy.arange(300.0)}}
    with checkpoint.Manager(str(tmp_path), {"seed": 0}, contract.load(simulated), 3) as manager:
        for step in (1, 2):
            manager.save(step, state)
    folder = tmp_path / "checkpoints"
    (folder / "2" / "state" / "manifest.ocdbt").unlink()
    (folder / "1" / readback.CHECKSUMS).unlink()
    with monkeypatch.context() as patch, caplog.at_level("WARNING", logger="fusionx"):
        patch.setattr(jax, "process_count", lambda: 2)
        readback.set_aside_damaged(str(tmp_path), str(folder))
        readback.confirm(str(folder / "1"))
        with pytest.raises(RunError, match="cannot be read back"):
            readback.confirm(str(tmp_path / "damaged" / "2"))
    assert [r.message for r in caplog.records if "is passed over" in r.message]
    assert (folder / "1" / readback.CHECKSUMS).exists()
    readback.check(str(folder / "1"))
