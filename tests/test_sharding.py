import json

import pytest

from fusionx_jax import sharding
from fusionx_jax.errors import InputError
from tests.helpers import EARLY, TINY, run_script

LOSSES = """
import json, sys
import jax
from fusionx_jax import config, pretrain, sharding
sharding.REPLICATED_BYTES = 1 << 16  # the test network has no array of 4 MB
assert len(jax.devices()) == int(sys.argv[2]), jax.devices()
c = config.override(config.load_file("configs/demo.py"), json.loads(sys.argv[3]))
assert pretrain.run(c, sys.argv[1]) == 0
"""


def _losses(tmp_path, simulated, devices, data, fsdp, *more):
    workdir = tmp_path / f"{devices}-{data}-{fsdp}"
    overrides = [
        *TINY,
        *more,
        f"--config.dataset={simulated}",
        f"--config.mesh.data={data}",
        f"--config.mesh.fsdp={fsdp}",
    ]
    done = run_script(
        LOSSES, str(workdir), str(devices), json.dumps(overrides), env={
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (workdir / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    return [float(line.split(",")[column]) for line in lines[1:]]


@pytest.mark.slow
def test_eight_devices_follow_the_loss_curve_of_one(tmp_path, simulated):
    one = _losses(tmp_path, simulated, 1, 1, 1, *EARLY)
    assert len(one) == 6
    # Sums over devices come in another order: float32 round-off, grown over six steps.
    assert _losses(tmp_path, simulated, 8, 2, 4, *EARLY) == pytest.approx(one, rel=2e-4)


@pytest.mark.slow
def test_meshes_of_data_and_fsdp_alone_follow_the_loss_curve_of_one(tmp_path, simulated):
    one = _losses(tmp_path, simulated, 1, 1, 1)
    for devices, data, fsdp in ((4, 1, 4), (8, 8, 1), (8, -1, 2)):
        assert _losses(tmp_path, simulated, devices, data, fsdp) == pytest.approx(one, rel=2e-4)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(InputError, match=r"does not fit 1 device"):
        sharding.make_mesh(2, 2)
    with pytest.raises(InputError, match=r"does not fit"):
        sharding.make_mesh(-1, 3)
    with pytest.raises(InputError, match="multiple of the 1 device"):
        sharding.check_batch(0, sharding.make_mesh())


def test_large_arrays_are_split_along_their_largest_divisible_axis_small_ones_kept(tmp_path):
    script = """
import jax, numpy as np
from fusionx_jax import sharding
mesh = sharding.make_mesh(2, 4)
f32 = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
tree = {"big": f32(1024, 2048), "odd": f32(2046, 1024), "prime": f32(1279, 1283), "small": f32(1024, 1024)}
assert tuple(sharding.state_shardings(tree["small"], mesh, 1 << 20).spec) == ("fsdp", None)
print({k: tuple(v.spec) for k, v in sharding.state_shardings(tree, mesh).items()})
"""
    done = run_script(script, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"})
    assert eval(done.stdout) == {
        "big": (None, "fsdp"),
        "odd": (None, "fsdp"),
        "prime": (None, None),
        "small": (None, None),  # exactly 4 MB
    }
