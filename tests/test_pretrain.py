import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusionx_jax import checkpoint, config, files, preprocess, pretrain
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.models import build
from fusionx_jax.prepared import sets
from fusionx_jax.training import step
from fusionx_jax.training.experiment import run_contract
from fusionx_jax.training.objective import make_objective
from fusionx_jax.training.optimizer import make_optimizer
from tests.helpers import EARLY, ROOT, TINY, assert_clear, run_cli, small_disk


def _params(workdir, c):
    saved = checkpoint.find(str(workdir))
    model = build.make_model(c, saved.contract.modalities)
    return saved.step, checkpoint.load_params(
        saved, jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    )


def _rows(workdir):
    with open(os.path.join(workdir, "metrics.csv"), newline="") as f:
        return list(csv.DictReader(f))


def test_loss_falls_and_is_logged_by_modality(trained):
    rows = _rows(trained)
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    parts = ("loss_s1", "loss_s2", "loss_contrast")
    for r in rows:
        assert float(r["loss"]) == pytest.approx(sum(float(r[k]) for k in parts), rel=1e-5)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert os.listdir(os.path.join(trained, "tensorboard"))


def test_a_run_cut_short_goes_on_to_bit_identical_parameters(trained, tiny_config, tmp_path, monkeypatch):
    save = checkpoint.Manager.save

    def save_then_die(self, step, state, wait=False):
        save(self, step, state, wait=True)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Manager, "save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(tiny_config, str(tmp_path))
    monkeypatch.undo()
    # A line cut short by a kill and rows past the checkpoint are dropped on resume.
    with open(tmp_path / "metrics.csv", "a") as f:
        f.write("5,1.0,1.0,1.0,1.0,1.0,1.0,0.0\n6,1.")
    assert pretrain.run(tiny_config, str(tmp_path)) == 0
    (step, resumed), (_, whole) = _params(tmp_path, tiny_config), _params(trained, tiny_config)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    deterministic = ("step", "loss", "loss_s1", "loss_s2", "grad_norm", "learning_rate")
    assert [[r[k] for k in deterministic] for r in _rows(tmp_path)] == [
        [r[k] for k in deterministic] for r in _rows(trained)
    ]


def test_a_finished_run_has_nothing_left_to_do(trained, tiny_config):
    before = os.path.getmtime(os.path.join(trained, "metrics.csv"))
    assert pretrain.run(tiny_config, trained) == 0
    assert os.path.getmtime(os.path.join(trained, "metrics.csv")) >= before
    assert len(_rows(trained)) == 6


def test_a_workdir_of_another_config_is_refused_and_left_alone(trained, tiny_config):
    tiny_config.mask_ratio = 0.5
    with pytest.raises(InputError, match=r"belongs to another config \(mask_ratio: was 0.8, now 0.5\)"):
        pretrain.run(tiny_config, trained)
    with open(os.path.join(trained, "run.json")) as f:
        assert json.load(f)["config"]["mask_ratio"] == 0.8


def test_a_workdir_in_which_a_run_goes_on_is_refused(trained, tiny_config):
    lock = files.lock(os.path.join(trained, "lock"))
    with pytest.raises(InputError, match="Another run trains in the workdir"):
        pretrain.run(tiny_config, trained)
    lock.close()
    assert pretrain.run(tiny_config, trained) == 0


def test_what_does_not_touch_the_numbers_may_change(trained, tiny_config):
    tiny_config.log_every = 3
    tiny_config.label_fractions = (0.5,)
    assert pretrain.run(tiny_config, trained) == 0


def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
    train_step = step.train_step

    def poisoned(state, wire, **fixed):
        state, metrics = train_step(state, wire, **fixed)
        bad = state["step"] >= 5
        return state, metrics | {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(step, "train_step", poisoned)
    with pytest.raises(RunError, match=r"diverged at step 5: loss nan.*checkpoint of step 4 is kept"):
        pretrain.run(tiny_config, str(tmp_path))
    assert checkpoint.find(str(tmp_path)).step == 4


def test_a_disk_that_fills_keeps_the_checkpoints_there_are(tmp_path, simulated, tiny_config):
    with small_disk(tmp_path / "disk", "60m"):  # room for two checkpoints of 25 MB
        workdir = tmp_path / "disk" / "w"
        done = run_cli(
            "fusionx_jax", "pretrain", "--config=configs/demo.py", f"--workdir={workdir}", *TINY,
            f"--config.dataset={simulated}", "--config.keep_checkpoints=3",
        )  # fmt: skip
        assert_clear(done, 1, "disk filled", "run the same command again")
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
        step, params = _params(workdir, tiny_config)
        assert step == 4
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 90194313216 bytes. [tf-allocator-allocation-error='']\n"
    "BufferAssignment stats:\n  parameter allocation: 1.2GiB"
)


def test_a_step_that_runs_out_of_device_memory_names_the_settings_to_change(tiny_config, tmp_path, monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(pretrain, "jit_step", lambda *_: refuse)
    with pytest.raises(
        RunError, match="batch_size is 16, optimizer.accumulate 1, model.remat 'none'.*90194313216"
    ) as e:
        pretrain.run(tiny_config, str(tmp_path))
    assert "disk" not in str(e.value)


def test_a_full_disk_and_full_device_memory_are_told_apart():
    full_disk = ValueError('RESOURCE_EXHAUSTED: Error writing "c/0": No space left on device')
    with pytest.raises(RunError, match="disk filled while saving"):
        checkpoint.save_errors(lambda: (_ for _ in ()).throw(full_disk), "d")
    with pytest.raises(jax.errors.JaxRuntimeError):
        checkpoint.save_errors(lambda: (_ for _ in ()).throw(jax.errors.JaxRuntimeError(OUT_OF_MEMORY)), "d")


def test_bands_stay_in_the_order_of_the_weights_whatever_the_statistics(trained, simulated, tiny_config):
    import dataclasses

    data = checkpoint.find(trained).contract
    turned = dataclasses.replace(data.modalities["s1"], bands=("VH", "VV"), mean=(1.0, 2.0), std=(3.0, 4.0))
    data = dataclasses.replace(data, modalities={**data.modalities, "s1": turned})
    tiny_config.init_from = trained
    tiny_config.statistics = "dataset"
    found = run_contract(tiny_config, data)[0].modalities["s1"]
    assert (found.bands, found.mean, found.std) == (("VV", "VH"), (2.0, 1.0), (4.0, 3.0))


def test_a_config_that_cannot_run_leaves_the_workdir_free(tiny_config, tmp_path, trained):
    for change in ({"mask_ratio": 1.5}, {"seed": -1}, {"init_from": trained, "model.size": "tiny"}):
        broken = tiny_config.copy_and_resolve_references()
        broken.update_from_flattened_dict(change)
        with pytest.raises(InputError):
            pretrain.run(broken, str(tmp_path / "w"))
        assert not (tmp_path / "w" / "run.json").exists()


@pytest.mark.slow
def test_starting_from_other_weights_keeps_their_statistics_unless_told(trained, tiny_config, tmp_path):
    from data import writer
    from data.simulated.builder import Simulated

    other = writer.prepare(Simulated(60, 32, 7), str(tmp_path / "prepared"), num_workers=1)
    tiny_config.dataset = other
    tiny_config.init_from = trained
    tiny_config.num_steps = 2
    assert pretrain.run(tiny_config, str(tmp_path / "a")) == 0
    donor, trained_here = checkpoint.find(trained).contract, checkpoint.find(str(tmp_path / "a")).contract
    assert trained_here.modalities["s1"].mean == donor.modalities["s1"].mean
    tiny_config.statistics = "dataset"
    assert pretrain.run(tiny_config, str(tmp_path / "b")) == 0
    assert checkpoint.find(str(tmp_path / "b")).contract.modalities["s1"].mean != donor.modalities["s1"].mean
    # One warm-up step moves little: the weights are the donor's, not fresh ones.
    _, start = _params(trained, tiny_config)
    _, after = _params(tmp_path / "a", tiny_config)
    drift = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, after)
    assert max(jax.tree.leaves(drift)) < 0.02


def test_optimizer_equals_optax_parts_and_decays_kernels_only(tiny_config):
    optimizer, schedule = make_optimizer(tiny_config)
    params = {"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones((2,))}}
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        updates, state = optimizer.update(zero, state, params)
    rate = float(schedule(1))
    assert np.allclose(updates["layer"]["kernel"], -rate * tiny_config.optimizer.weight_decay)
    assert (updates["layer"]["bias"] == 0).all()
    peak = tiny_config.optimizer.learning_rate * tiny_config.batch_size / 256
    reference = optax.warmup_cosine_decay_schedule(0, peak, min(tiny_config.optimizer.warmup_steps, 5), 6)
    assert rate == pytest.approx(float(reference(1)))


def test_tiles_that_are_no_multiple_of_the_patch_are_padded_and_trained_on(tiny_config, tmp_path):
    tiny_config = config.override(tiny_config, EARLY)
    tiny_config.model.patch_size = 12
    tiny_config.num_steps = 2
    assert pretrain.run(tiny_config, str(tmp_path)) == 0
    assert np.isfinite(float(_rows(tmp_path)[-1]["loss"]))


@pytest.mark.slow
def test_groups_of_bands_train_and_are_judged_with_one_left_out(simulated, tmp_path):
    from fusionx_jax.evaluate import evaluation, features

    c = config.override(
        config.load_file(str(ROOT / "configs/methods/fusionx_bands.py:demo")),
        [*TINY, *EARLY, f"--config.dataset={simulated}", "--config.num_steps=2"],
    )
    assert pretrain.run(c, str(tmp_path)) == 0
    setting = evaluation.open_evaluation(str(tmp_path), simulated, [])
    encoder = setting.trained
    pools = features.extract(encoder, setting.prepared, "val", ["s1", "s2_10m", "s2_60m"], 20)
    assert {k for k in pools if k.endswith("_mean")} == {"s1_mean", "s2_10m_mean", "s2_60m_mean"}


@pytest.mark.slow
def test_a_mask_schedule_changes_the_ratio_at_its_step_and_resumes(tiny_config, tmp_path):
    tiny_config = config.override(tiny_config, EARLY)
    tiny_config.mask_schedule = ((3, 0.5),)
    assert config.stages(tiny_config) == [0, 3]
    assert config.mask_ratios(tiny_config, 2)["s1"] == 0.8
    assert config.mask_ratios(tiny_config, 3)["s1"] == 0.5
    assert pretrain.run(tiny_config, str(tmp_path / "whole")) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4", ignore_errors=True)
    assert pretrain.run(tiny_config, str(tmp_path / "cut")) == 0
    whole, cut = (_params(tmp_path / w, tiny_config)[1] for w in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, cut)
    tiny_config.mask_schedule = ((0.5, 3),)
    with pytest.raises(InputError, match="steps rising"):
        pretrain.run(tiny_config, str(tmp_path / "w"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.masking=sideways", "consistent, complementary, dirichlet"),
        ("--config.mask_ratio=1.5", "mask_ratio is 1.5"),
        ("--config.model.size=huge", "mini, tiny, small, base, large"),
        ("--config.model.patch_size=64", "patch_size is 64"),
        ("--config.augment.crop=100", "augment.crop is 100"),
        ("--config.modalities=('s1', 's3')", "modality s3"),
        ("--config.target=pixels", "target is 'pixels'"),
        ("--config.batch_size=0", "batch_size is 0"),
        ("--config.num_steps=-1", "num_steps is -1"),
        ("--config.keep_checkpoints=0", "keep_checkpoints is 0"),
        ("--config.dataset=nowhere", "There is no folder nowhere"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(tiny_config, tmp_path, change, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(".", r"\.")):
        pretrain.run(config.override(tiny_config, [change]), str(tmp_path))


def _launch(workdir, simulated):
    return subprocess.Popen(
        [
            sys.executable, "-m", "fusionx_jax", "pretrain", "--config=configs/demo.py", f"--workdir={workdir}", *TINY,
            *EARLY, f"--config.dataset={simulated}", "--config.num_steps=60", "--config.checkpoint_every=5",
        ],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait_for(workdir, step, process):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        folder = workdir / "checkpoints"
        if folder.is_dir() and any(p.name.isdigit() and int(p.name) >= step for p in folder.iterdir()):
            return
        if process.poll() is not None:
            raise AssertionError(process.stderr.read())
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint of step {step}")


@pytest.mark.slow
def test_stopped_by_sigterm_ctrl_c_and_kill_it_ends_bit_identical(simulated, tmp_path):
    c = config.override(config.load_file(str(ROOT / "configs/demo.py")), [*TINY, *EARLY, "--config.num_steps=60"])
    whole = _launch(tmp_path / "whole", simulated)
    assert whole.wait(400) == 0, whole.stderr.read()
    cut = tmp_path / "cut"
    for number, after, status in (
        (signal.SIGTERM, 5, 143),
        (signal.SIGKILL, 20, -9),
        (signal.SIGINT, 30, 130),
        (signal.SIGKILL, 40, -9),
    ):
        process = _launch(cut, simulated)
        _wait_for(cut, after, process)
        process.send_signal(number)
        assert process.wait(120) == status, process.stderr.read()
    last = _launch(cut, simulated)
    assert last.wait(400) == 0, last.stderr.read()
    (step, a), (_, b) = _params(cut, c), _params(tmp_path / "whole", c)
    assert step == 60
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [r["loss"] for r in _rows(cut)] == [r["loss"] for r in _rows(tmp_path / "whole")]


def test_gradients_of_parts_are_the_mean_over_interleaved_parts(tiny_config, simulated):
    c = config.override(tiny_config, EARLY)
    prepared = sets.open_sets(simulated)
    modalities = prepared.contract.modalities
    model = build.make_model(c, modalities)
    objective = make_objective(c, model, preprocess.make_normalizer(modalities, modalities))
    params = build.init_params(model, jax.random.key(0))
    wire = {m: jnp.asarray(x) for m, x in prepared.read("train", np.arange(8), ["s1", "s2"]).items()}
    key = jax.random.key(3)
    found, metrics = jax.jit(lambda p, w: step.mean_gradients(objective, p, w, key, 2))(params, wire)
    one = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    parts = [one(params, {m: x[i::2] for m, x in wire.items()}, jax.random.fold_in(key, i)) for i in (0, 1)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, mean)
    assert float(metrics["loss"]) == pytest.approx((float(parts[0][0][0]) + float(parts[1][0][0])) / 2, rel=1e-5)


def test_a_batch_that_is_accumulated_runs_and_must_divide(tiny_config, tmp_path, caplog):
    caplog.set_level("INFO", "fusionx")
    c = config.override(tiny_config, (*EARLY, "--config.optimizer.accumulate=4", "--config.num_steps=2"))
    assert pretrain.run(c, str(tmp_path / "a")) == 0
    assert "training paused for" in caplog.text
    c.optimizer.accumulate = 3
    with pytest.raises(InputError, match="multiple of the 1 device.* times the 3 parts"):
        pretrain.run(c, str(tmp_path / "b"))
