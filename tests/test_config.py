import dataclasses

import jax
import pytest

from fusionx_jax import config as config_lib
from fusionx_jax import contract, preprocess
from fusionx_jax.errors import InputError
from fusionx_jax.models import build
from fusionx_jax.training import workdir as workdir_lib
from fusionx_jax.training.objective import make_objective
from fusionx_jax.training.state import abstract_batch
from tests.helpers import EARLY

THREE = "--config.modalities=('s1', 's2', 'dem')"


def test_any_modality_takes_a_loss_weight_and_a_mask_ratio(tiny_config, simulated):
    with tiny_config.ignore_type():
        tiny_config.mask_ratio = config_lib.ConfigDict({"s1": 0.8, "s2": 0.8})
    c = config_lib.override(tiny_config, [*EARLY, "--config.loss_weights.dem=3", "--config.mask_ratio.dem=0.5", THREE])
    data = contract.load(simulated)
    third = dataclasses.replace(data.modalities["s1"], bands=("elevation", "slope"))
    data = dataclasses.replace(data, modalities={**data.modalities, "dem": third})
    model = build.make_model(c, data.modalities)
    objective = make_objective(c, model, preprocess.make_normalizer(data.modalities, data.modalities))
    assert objective.weights == {"s1": 1.0, "s2": 1.0, "dem": 3.0}
    params = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    _, metrics = jax.eval_shape(objective.loss, params, abstract_batch(c, data), jax.random.key(0))
    assert "loss_dem" in metrics


def test_a_loss_weight_of_no_modality_is_refused(tiny_config):
    with pytest.raises(InputError, match=r"dem is not a modality of this config; modalities is \('s1', 's2'\)"):
        config_lib.override(tiny_config, ["--config.loss_weights.dem=1"])
    with pytest.raises(InputError, match="mask_ratio has no keys"):
        config_lib.override(tiny_config, ["--config.mask_ratio.s1=0.5"])
    model = build.make_model(tiny_config, contract.load(tiny_config.dataset).modalities)
    three = config_lib.override(tiny_config, [THREE])
    with pytest.raises(InputError, match=r"loss_weights has no entry for dem; .*--config.loss_weights.dem=1"):
        make_objective(three, model, preprocess.Normalizer({}, {}, {}, {}, {}, False))
    with pytest.raises(InputError, match="cannot be set"):
        config_lib.override(tiny_config, [THREE, "--config.loss_weights.dem=much"])


@pytest.mark.parametrize("key", config_lib.FREE_SETTINGS)
def test_settings_that_do_not_change_weights_matter_neither_for_resuming_nor_for_the_hash(tiny_config, key):
    before = config_lib.to_json(tiny_config)
    after = {**before, key: "another value"}
    assert before[key] != after[key]
    assert config_lib.without_free_settings(after) == config_lib.weight_settings(tiny_config)
    assert workdir_lib.differences(before, after) == []


def test_resuming_with_another_log_interval_changes_no_weight_settings(tiny_config):
    before = config_lib.weight_settings(tiny_config)
    tiny_config.log_every += 1
    assert config_lib.weight_settings(tiny_config) == before
    tiny_config.mask_ratio = 0.5
    assert config_lib.weight_settings(tiny_config) != before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch_size=0", "batch_size is 0; it must be at least 1."),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan; it must be finite."),
        ("optimizer.b2=1.0", "optimizer.b2 is 1.0; it must be from 0 to below 1."),
        ("evaluate.layer_decays=(0,)", "Unknown config key"),
        (
            "evaluate.finetune.layer_decays=(0.0,)",
            "evaluate.finetune.layer_decays is (0.0,); it must be above 0 and at most 1.",
        ),
        ("evaluate.finetune.learning_rates=(0.1,-1.0)", "it must be above 0"),
        ("label_fractions=(0.5,1.5)", "it must be above 0 and at most 1"),
        ("loss_weights.s1=-1.0", "loss_weights.s1 is -1.0; it must be at least 0."),
        ("modalities=(1,2)", "it must be a list of names"),
        ("modalities=('s1','s1')", "it names something twice"),
        ("num_steps=99999999999", "it must be at most 2147483647"),
        ("evaluate=3", "A config value cannot be set"),
        ("verify_records=maybe", "A config value cannot be set"),
    ],
)
def test_values_out_of_range_and_of_another_kind_are_refused(tiny_config, override, words):
    with pytest.raises(InputError) as caught:
        config_lib.override(tiny_config, [f"--config.{override}"])
    assert words in str(caught.value)


def test_very_long_words_are_cut_in_messages():
    assert str(InputError(f"{'a' * 5000} is no key.")) == f"{'a' * 400}… is no key."
