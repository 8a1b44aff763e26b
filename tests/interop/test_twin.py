import numpy as np
import pytest

import fusionx_jax
from fusionx_jax import config, pretrain
from fusionx_jax.errors import InputError
from fusionx_jax.interop import export
from tests.helpers import EARLY, ROOT, TINY, run_script

pytest.importorskip("torch", reason="PyTorch is not installed (the extra [torch])")


def _tiles(workdir, simulated):
    images, _ = export._tiles(fusionx_jax.load(workdir), simulated, 5)
    images["s1"][0, :8, :8] = np.nan  # a patch without data
    return images


@pytest.mark.parametrize("shown", [("s1", "s2"), ("s2",)])
def test_the_twin_gives_the_numbers_of_the_jax_encoder_without_jax(trained, simulated, tmp_path, shown):
    report = export.export(trained, "safetensors", str(tmp_path / "out"))
    assert report["compared"]
    assert max(report["largest_relative_difference"].values()) < 1e-5
    from fusionx_jax.interop import twin

    images = {n: _tiles(trained, simulated)[n] for n in shown}
    ours, theirs = fusionx_jax.load(trained).encode(images), twin.load(str(tmp_path / "out")).encode(images)
    assert max(export.compare(ours, theirs).values()) < 1e-5
    twin_encoder = twin.load(str(tmp_path / "out"))
    wrong_images = [({"s2": images["s2"] / 1e4}, "multiply by 10000"), ({"s2": images["s2"][..., :3]}, "has the shape")]
    if "s1" in shown:
        wrong_images.append(({**images, "s2": images["s2"][:, :8]}, "co-registered"))
    for wrong, words in wrong_images:
        with pytest.raises(InputError, match=words):
            twin_encoder.encode(wrong)
    script = """
import sys
from fusionx_jax.interop import twin
twin.load(sys.argv[1])
assert "jax" not in sys.modules and "flax" not in sys.modules
"""
    done = run_script(script, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_joint_first_block_and_three_modalities_have_a_twin_too(simulated, tmp_path):
    c = config.override(
        config.load_file(str(ROOT / "configs/methods/fusionx_bands.py:demo")),
        [*TINY, *EARLY, f"--config.dataset={simulated}", "--config.num_steps=1", "--config.model.cross_attention=none"],
    )
    assert pretrain.run(c, str(tmp_path / "w")) == 0
    report = export.export(str(tmp_path / "w"), "safetensors", str(tmp_path / "out"))
    assert max(report["largest_relative_difference"].values()) < 1e-5


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    from fusionx_jax.interop import twin

    (tmp_path / "encoder.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is not a file of `fusionx export"):
        twin.load(str(tmp_path))
