import json

import jax
import numpy as np
import pytest

import fusionx_jax
from fusionx_jax import checkpoint, encoder
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.evaluate import evaluation
from fusionx_jax.interop import export
from tests.helpers import assert_clear, run_here, run_script


@pytest.fixture(scope="module")
def images(trained, simulated):
    return export._tiles(fusionx_jax.load(trained), simulated, 5)[0]


def test_orbax_holds_the_encoder_alone_and_is_loaded_like_any_checkpoint(trained, simulated, images, tmp_path):
    report = export.export(trained, "orbax", str(tmp_path / "out"))
    assert report["compared"]
    assert max(report["largest_relative_difference"].values()) == 0.0
    assert set(report["largest_relative_difference"]) == {"pooled", "summary", "tokens s1", "tokens s2"}
    back = fusionx_jax.load(str(tmp_path / "out"))
    assert back.saved.step == 6
    assert back.modalities == fusionx_jax.load(trained).modalities
    metadata = checkpoint.ocp.checkpointables_metadata(str(tmp_path / "out")).metadata["state"]
    assert set(metadata) == {"params"}
    assert set(metadata["params"]) == {"encoder"}
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["step"] == 6
    assert back.saved.config["dataset"] == ""  # the paths of this machine stay here
    assert (tmp_path / "out" / "checksums.json").exists()
    with pytest.raises(InputError, match="exists already"):
        export.export(trained, "orbax", str(tmp_path / "out"))


def test_with_the_decoder_an_export_starts_a_new_run_or_is_restored_sharded(trained, simulated, tmp_path):
    out = str(tmp_path / "out")
    assert export.export(trained, "orbax", out, with_decoder=True)["with_decoder"]
    script = """
import sys, jax
from fusionx_jax import checkpoint, config, sharding
from fusionx_jax.models import build
saved = checkpoint.find(sys.argv[1])
model = build.make_model(config.from_json(saved.config), saved.contract.modalities)
shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
layout = sharding.state_shardings(shapes, sharding.make_mesh(1, 4), 1 << 16)
wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
params = checkpoint.load_params(saved, wanted)
assert any(len(x.sharding.device_set) == 4 and not x.is_fully_replicated for x in jax.tree.leaves(params))
print(float(sum(abs(x).sum() for x in jax.tree.leaves(params))))
"""
    done = run_script(script, out, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})
    assert done.returncode == 0, done.stderr[-2000:]
    setting = evaluation.open_evaluation(trained, simulated, [])
    shapes = jax.eval_shape(lambda: fusionx_params(setting))
    whole = checkpoint.load_params(setting.saved, shapes)
    assert float(done.stdout) == pytest.approx(float(sum(abs(x).sum() for x in jax.tree.leaves(whole))), rel=1e-5)


def fusionx_params(setting):
    from fusionx_jax.models import build

    return build.init_params(setting.model, jax.random.key(0))


def test_stablehlo_runs_any_number_of_tiles_for_three_platforms(trained, simulated, images, tmp_path):
    report = export.export(trained, "stablehlo", str(tmp_path / "out"), simulated)
    assert max(report["largest_relative_difference"].values()) < 1e-4
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "encoder.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    reference = fusionx_jax.load(trained).encode(images)
    for count in (1, 3):
        out = program.call({n: np.asarray(x[:count], np.float32) for n, x in images.items()})
        assert np.allclose(out["pooled"], reference.pooled[:count], atol=1e-4)
    about = json.loads((tmp_path / "out" / "description.json").read_text())
    assert about["contract"]["modalities"]["s1"]["unit"] == "dB"
    assert about["config"]["model"]["size"] == "mini"


def test_safetensors_hold_every_parameter_with_config_and_contract(trained, tmp_path):
    from safetensors import safe_open

    export.export(trained, "safetensors", str(tmp_path / "out"), with_decoder=True)
    with safe_open(tmp_path / "out" / "encoder.safetensors", framework="np") as f:
        about = json.loads(f.metadata()["fusionx"])
        names = set(f.keys())
        token = f.get_tensor("encoder/class_token")
    assert about["architecture"]["own_depth"] == 3
    assert about["contract"]["modalities"]["s2"]["bands"][0] == "B01"
    assert any(n.startswith("decoder/") for n in names)
    assert np.array_equal(token, fusionx_jax.load(trained).params["encoder"]["class_token"])


def test_an_export_that_differs_is_not_left_behind(trained, tmp_path, monkeypatch):
    encode = encoder.TrainedEncoder.encode

    def other(self, images, *rest, **more):
        out = encode(self, images, *rest, **more)
        return out._replace(summary=out.summary * (1.01 if "tmp-" in self.saved.path else 1.0))

    monkeypatch.setattr(encoder.TrainedEncoder, "encode", other)
    with pytest.raises(RunError, match=r"'summary': 0.0(1|0999)\d*.* above the tolerance"):
        export.export(trained, "orbax", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_report_and_says_what_it_lacks(trained, tmp_path):
    done = run_here("export", f"--workdir={trained}", "--to=orbax", f"--out={tmp_path / 'a'}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["compared"]
    missing = run_here("export", f"--workdir={trained}", "--to=orbax", f"--out={tmp_path / 'b'}", "--dataset=nowhere")
    assert_clear(missing, 2, "give one with --dataset")
    assert not (tmp_path / "b").exists()
