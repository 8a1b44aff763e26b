import os
import shutil

import jax
import numpy as np
import pytest

from fusionx_jax import checkpoint, contract, readback
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.models import build
from fusionx_jax.training.optimizer import make_optimizer
from tests.helpers import EARLY, TINY, run_script


def test_a_checkpoint_is_understood_without_code_or_config_file(trained, simulated):
    saved = checkpoint.find(trained)
    assert saved.step == 6
    assert saved.contract == contract.load(simulated)
    assert saved.config["masking"] == "independent"
    steps = os.listdir(os.path.join(trained, "checkpoints"))
    assert sorted(map(int, steps)) == [4, 6]  # keep_checkpoints is 2


def test_parameters_load_without_the_optimizer_and_equal_a_full_restore(trained, tiny_config):
    saved = checkpoint.find(trained)
    model = build.make_model(tiny_config, saved.contract.modalities)
    shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    params = checkpoint.load_params(saved, shapes)
    optimizer, _ = make_optimizer(tiny_config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = jax.eval_shape(
        lambda: {
            "params": build.init_params(model, jax.random.key(0)),
            "opt_state": optimizer.init(build.init_params(model, jax.random.key(0))),
            "step": jax.numpy.zeros((), "int32"),
        }
    )
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)
    with checkpoint.Manager(trained, saved.config, saved.contract, 2) as manager:
        full = manager.restore(6, state)
    assert int(full["step"]) == 6
    jax.tree.map(np.testing.assert_array_equal, params, full["params"])


def test_another_network_is_refused(trained, tiny_config):
    saved = checkpoint.find(trained)
    tiny_config.model.patch_size = 4
    model = build.make_model(tiny_config, saved.contract.modalities)
    with pytest.raises(InputError, match="does not have the parameters"):
        checkpoint.load_params(saved, jax.eval_shape(lambda: build.init_params(model, jax.random.key(0))))


def test_folders_without_a_checkpoint_say_so(tmp_path, trained):
    with pytest.raises(InputError, match="There is no folder"):
        checkpoint.find(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not a FusionX-Net checkpoint"):
        checkpoint.find(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no finished checkpoint"):
        checkpoint.find(str(tmp_path))


@pytest.mark.slow
def test_a_checkpoint_saved_on_eight_devices_restores_on_four_and_one(tmp_path, simulated):
    # The schedule belongs to the run, which stays one of six steps: the process ends itself after some of them.
    script = """
import sys
from fusionx_jax import checkpoint, config, pretrain, sharding
sharding.REPLICATED_BYTES = 1 << 16  # the test network has no array of 4 MB
save = checkpoint.Manager.save
def save_and_leave(self, step, state, wait=False):
    save(self, step, state, wait=True)
    if step == int(sys.argv[2]):
        sys.exit(0)
checkpoint.Manager.save = save_and_leave
c = config.override(config.load_file("configs/demo.py"), sys.argv[3:])
sys.exit(pretrain.run(c, sys.argv[1]))
"""

    def go(workdir, devices, steps, fsdp):
        arguments = [*TINY, *EARLY, f"--config.dataset={simulated}", f"--config.mesh.fsdp={fsdp}"]
        done = run_script(
            script, str(workdir), str(steps), *arguments,
            env={"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (workdir / "metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("loss")
        return [float(line.split(",")[column]) for line in lines[1:]]

    whole = go(tmp_path / "whole", 8, 6, 4)
    go(tmp_path / "moved", 8, 2, 4)
    go(tmp_path / "moved", 4, 4, 2)
    assert go(tmp_path / "moved", 1, 6, 1) == pytest.approx(whole, rel=2e-4)


@pytest.mark.parametrize("name", ["50% {x}", "a*b?c", "a$b 'c'", "é漢#&;:~+|,", "run [1]", "a\\b"])
def test_what_is_saved_at_an_odd_path_is_read_back_or_the_path_is_refused(simulated, tmp_path, name):
    workdir = str(tmp_path / name)
    try:
        checkpoint.check_address(workdir)
    except InputError:
        assert set(name) & set("[]\\")
        return
    state = {"w": jax.numpy.arange(3.0)}
    with checkpoint.Manager(workdir, {}, contract.load(simulated), 1) as manager:
        manager.save(1, state, wait=True)
        assert np.array_equal(manager.restore(1, state)["w"], state["w"])


@pytest.fixture
def saved_thrice(simulated, tmp_path):
    """A run of three checkpoints of a small state, and the state."""
    state = {"params": {"w": jax.numpy.arange(300.0)}, "step": jax.numpy.int32(0)}
    with _manager(tmp_path, simulated) as manager:
        for step in (1, 2, 3):
            manager.save(step, state)
    return tmp_path, state


def _manager(workdir, simulated):
    return checkpoint.Manager(str(workdir), {"seed": 0}, contract.load(simulated), 3)


def _step(workdir, step):
    return workdir / "checkpoints" / str(step)


def _remove_manifest(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def _empty_files(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def _empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _change_metadata(folder):
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


DAMAGES = (_remove_manifest, _empty_files, _empty_folder, _change_metadata)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_used_and_damaged_ones_are_named(saved_thrice, simulated, caplog, damage):
    workdir, state = saved_thrice
    damage(_step(workdir, 3))
    damage(_step(workdir, 2))
    with caplog.at_level("WARNING", logger="fusionx"):
        assert checkpoint.find(str(workdir)).step == 1
    assert [r.args[0] for r in caplog.records if r.name == "fusionx"] == [
        str(_step(workdir, 3)),
        str(_step(workdir, 2)),
    ]
    with pytest.raises(InputError, match="or not a whole one"):
        checkpoint.find(str(_step(workdir, 3)))
    with _manager(workdir, simulated) as manager:
        assert manager.latest_step() == 1
        assert np.array_equal(manager.restore(1, state)["params"]["w"], state["params"]["w"])
        manager.save(2, state)
    assert checkpoint.find(str(workdir)).step == 2
    assert sorted(p.name for p in (workdir / "damaged").iterdir()) == ["2", "3"]  # nothing is deleted


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(saved_thrice, simulated):
    workdir, _ = saved_thrice
    for step in (1, 2, 3):
        _remove_manifest(_step(workdir, step))
    for attempt in (lambda: _manager(workdir, simulated), lambda: checkpoint.find(str(workdir))):
        with pytest.raises(InputError, match=r"No checkpoint in .* is whole \(3: .*; 2: .*; 1: .*\)"):
            attempt()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_every_flipped_bit_is_noticed_or_harmless(saved_thrice):
    """A bit flipped in any file: the checkpoint is refused, or everything it gives is as before."""
    workdir, _ = saved_thrice
    folder = _step(workdir, 3)
    whole = readback.read(str(folder))
    rng = np.random.default_rng(0)
    noticed = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        before = path.read_bytes()
        for at in rng.integers(8 * len(before), size=4 if before else 0).tolist():
            changed = bytearray(before)
            changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
            try:
                readback.check(str(folder))
                jax.tree.map(np.testing.assert_array_equal, readback.read(str(folder)), whole)
            except readback.Damaged:
                noticed += 1
        path.write_bytes(before)
    assert noticed
    readback.check(str(folder))


def test_a_checkpoint_that_lost_arrays_ends_the_run(simulated, tmp_path, monkeypatch):
    """Orbax 0.12.8 leaves out the arrays without an error if a path contains brackets."""
    monkeypatch.setattr(checkpoint, "check_address", lambda workdir: None)
    lost = pytest.raises(RunError, match="was saved but cannot be read back")
    with lost, _manager(tmp_path / "run [1]", simulated) as manager:
        manager.save(1, {"params": {"w": jax.numpy.arange(3.0)}}, wait=True)
