import time

import pytest

from tests.helpers import TINY, assert_clear, run_cli, run_here, run_script


@pytest.mark.parametrize(
    "command",
    [("fusionx_jax", "--help"), ("fusionx_jax", "pretrain", "--help"), ("fusionx_jax", "evaluate", "--help"),
     ("fusionx_jax", "report", "--help"), ("data.prepare", "--help"), ("data.prepare", "simulated", "--help"),
     ("data.prepare", "paired_scenes", "--help"), ("experiments.label_sweep", "--help")],
)  # fmt: skip
def test_help_answers_without_waiting_for_heavy_imports(command):
    started = time.monotonic()
    done = run_cli(*command)
    assert done.returncode == 0
    assert "usage:" in done.stdout
    # A guard against importing TensorFlow or compiling, not a measurement: machines are shared.
    assert time.monotonic() - started < 15


def test_help_imports_no_tensorflow():
    script = "import sys\nfrom fusionx_jax.__main__ import main\ntry:\n    main(['pretrain', '--help'])\nexcept SystemExit:\n    pass\nprint('tensorflow' in sys.modules)"
    assert run_script(script).stdout.splitlines()[-1] == "False"


def test_usage_errors_are_one_sentence_with_status_two(tmp_path, simulated):
    go = ("pretrain", "--config=configs/demo.py", f"--workdir={tmp_path / 'w'}")
    assert run_here("fly").returncode == 2
    assert_clear(run_here(*go, "--config.learning_rat=1"), 2, "Unknown config key 'learning_rat'", "num_steps")
    assert_clear(run_here(*go, "--config.optimizer.speed=1"), 2, "optimizer has", "learning_rate")
    assert_clear(run_here(*go, "--config.num_steps=many"), 2, "num_steps")
    assert_clear(run_here(*go, "--color=red"), 2, "--color=red")
    assert_clear(run_here(*go, "--config.dataset=nowhere"), 2, "There is no folder nowhere")
    assert_clear(run_here(*go[:1], "--config=configs/none.py", go[2]), 2, "There is no config file")
    assert_clear(run_here("evaluate", f"--workdir={tmp_path}/x", f"--dataset={simulated}"), 2, "no folder")
    assert_clear(run_here("report", f"--workdir={tmp_path}"), 2, "not a FusionX-Net checkpoint")
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_damaged_shard_met_in_training_is_one_sentence(tmp_path, simulated):
    import shutil

    copy = shutil.copytree(simulated, tmp_path / "set")
    shard = next(copy.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-100_000])
    done = run_here(
        "pretrain", "--config=configs/demo.py", f"--workdir={tmp_path / 'w'}", f"--config.dataset={copy}",
        *TINY,
    )  # fmt: skip
    assert_clear(done, 2, shard.name, "prepare the set again")


NO_TENSORFLOW = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def without(name, path=None, target=None):
    if name.split(".")[0] in ("tensorflow", "tensorboard"):
        return None
    return find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(without)
try:
    import tensorflow
except ImportError:
    pass
else:
    raise SystemExit("the block does not work")
"""


@pytest.mark.slow
def test_train_step_evaluation_and_report_run_without_tensorflow(tmp_path, trained, simulated):
    import shutil

    workdir = shutil.copytree(trained, tmp_path / "w")
    script = NO_TENSORFLOW + """
import sys
import jax, jax.numpy as jnp
from fusionx_jax import config, preprocess
from fusionx_jax.models import build
from fusionx_jax.prepared import sets
from fusionx_jax.training.metric_log import MetricLog
from fusionx_jax.training.objective import make_objective
from fusionx_jax.training.optimizer import make_optimizer
from fusionx_jax.training.state import fresh_state
from fusionx_jax.training.step import train_step
workdir, dataset = sys.argv[1:3]
c = config.override(config.load_file("configs/demo.py"), sys.argv[3:])
prepared = sets.open_sets(dataset)
mods = prepared.contract.modalities
model = build.make_model(c, mods)
objective = make_objective(c, model, preprocess.make_normalizer(mods, mods))
optimizer, schedule = make_optimizer(c)
state = fresh_state(model, optimizer, 0)
wire = {k: jnp.asarray(v) for k, v in prepared.read("train", list(range(4)), ["s1", "s2"]).items()}
step = jax.jit(lambda s, b: train_step(s, b, objective=objective, optimizer=optimizer, schedule=schedule, seed=0))
state, metrics = step(state, wire)
assert jnp.isfinite(metrics["loss"]) and int(state["step"]) == 1
MetricLog(workdir, 0).write(1, {"loss": 1.0, "pairs_per_s": 1.0, "input_wait_share": 0.0})
from fusionx_jax.__main__ import main
assert main(["evaluate", f"--workdir={workdir}", f"--dataset={dataset}", "--config.evaluate.tasks=('multi',)", "--config.evaluate.modalities=('s1+s2',)"]) == 0
assert main(["report", f"--workdir={workdir}"]) == 0
assert main(["pretrain", "--config=configs/demo.py", f"--workdir={workdir}-2", *sys.argv[3:]]) == 0
assert "tensorflow" not in sys.modules
"""  # fmt: skip
    done = run_script(script, str(workdir), simulated, *TINY, f"--config.dataset={simulated}")
    assert done.returncode == 0, done.stderr[-3000:]
