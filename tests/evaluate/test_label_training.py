import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import evaluation, label_training, measure
from fusionx_jax.models import build


@pytest.fixture(scope="module")
def params(trained, simulated):
    setting = evaluation.open_evaluation(trained, simulated, [])
    fresh = jax.eval_shape(lambda: build.init_params(setting.model, jax.random.key(0)))
    head = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    return jax.tree.map(lambda x: np.zeros(x.shape), {"encoder": fresh["encoder"], "head": head})


def test_rates_fall_from_block_to_block_and_the_head_keeps_its_own(params):
    scales = label_training.rate_scales(params, 0.5, -1)
    assert scales["head"]["kernel"] == 1.0
    encoder = scales["encoder"]
    assert encoder["blocks"]["scan"]["mlp"]["up"]["kernel"].ravel().tolist() == [0.5]  # one joint block
    assert encoder["norm"]["scale"] == 0.5
    assert encoder["fusion_norm_s1"]["scale"] == encoder["class_token"] == 0.5**2
    assert encoder["own_s2"]["scan"]["mlp"]["up"]["kernel"].ravel().tolist() == [0.5**5, 0.5**4, 0.5**3]
    assert encoder["embed_s1"]["patches"]["kernel"] == 0.5**6


def test_only_the_last_blocks_are_trained_when_asked(params):
    encoder = label_training.rate_scales(params, 1.0, 3)["encoder"]
    assert encoder["own_s1"]["scan"]["mlp"]["up"]["kernel"].ravel().tolist() == [0, 0, 1]
    assert encoder["embed_s1"]["modality"] == 0
    assert encoder["fusion_mlp"]["up"]["kernel"] == encoder["norm"]["scale"] == 1
    none = label_training.rate_scales(params, 1.0, 0)
    assert all((x == 0).all() for x in jax.tree.leaves(none["encoder"]))


def test_options_out_of_range_are_refused(trained, simulated, tmp_path):
    with pytest.raises(InputError, match="layer_decay is 0"):
        measure.evaluate(
            evaluation.open_evaluation(
                trained, simulated,
                ["--config.evaluate.evaluators=('finetune',)", "--config.evaluate.finetune.layer_decay=0.0",
                 "--config.evaluate.baselines=()"],
            )
        )  # fmt: skip
