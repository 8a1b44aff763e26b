"""InfoNCE between two masked views of a tile, at its two dates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax import config, preprocess, pretrain
from fusionx_jax.errors import InputError
from fusionx_jax.models import build, layers
from fusionx_jax.prepared import sets
from fusionx_jax.training import experiment as experiment_lib
from fusionx_jax.training.state import training_features
from tests.conftest import TINY
from tests.helpers import ROOT


def _experiment(dataset, *changes):
    c = config.load_file(str(ROOT / "configs/demo.py"))
    options = [*TINY, f"--config.dataset={dataset}", "--config.model.patch_size=4", "--config.contrast.views=0.5"]
    return experiment_lib.make_experiment(config.override(c, [*options, *changes]))


def _batch(experiment):
    prepared = experiment.prepared
    index = np.arange(0, prepared.size("train"), 7)[:8]
    return prepared.read("train", index, training_features(experiment.config, prepared.contract))


@pytest.mark.parametrize("family", ["fusionx", "croma", "stacked"])
def test_the_loss_of_views_is_infonce_of_the_joint_tokens_of_both_dates(two_dates, family):
    masks = "consistent" if family == "stacked" else "independent"
    experiment = _experiment(two_dates, f"--config.model.family={family}", f"--config.masking={masks}")
    (objective,) = experiment.objectives.values()
    model, batch = experiment.model, _batch(experiment)
    assert set(batch) == {"s1", "s2", "s1@2", "s2@2"}
    params = build.init_params(model, jax.random.key(0))
    key = jax.random.key(5)
    wire = jax.tree.map(jnp.asarray, batch)
    total, metrics = objective.loss(params, wire, key)
    augment_key, mask_key = jax.random.split(key)
    moved = preprocess.augment(augment_key, wire, objective.crop, objective.flip)
    unit = []
    for view_key, suffix in ((mask_key, ""), (jax.random.fold_in(mask_key, 1), "@2")):
        images, masks, _ = objective.masked({m: moved[m + suffix] for m in ("s1", "s2")}, view_key)
        tokens = model.apply({"params": params}, images, masks, method="encode")
        groups = [tokens.groups["fused"]] if "fused" in tokens.groups else list(tokens.groups.values())
        pooled = np.mean([np.asarray(g).mean(1) for g in groups], axis=0)
        embedded = np.asarray(
            build.view_projector(model.config).apply({"params": params["views"]}, jnp.asarray(pooled))
        )
        unit.append(embedded / np.linalg.norm(embedded, axis=1, keepdims=True))
    logits = unit[0] @ unit[1].T / objective.temperature
    expected = np.mean([np.mean(np.log(np.exp(x).sum(1)) - np.diag(x)) for x in (logits, logits.T)])
    assert float(metrics["loss_views"]) == pytest.approx(expected, rel=1e-3)
    others = metrics["loss_s1"] + metrics["loss_s2"] + objective.contrast_weight * metrics.get("loss_contrast", 0.0)
    assert float(total) == pytest.approx(float(others) + 0.5 * expected, rel=1e-3)
    gradient = jax.grad(lambda p: objective.loss(p, wire, key)[0])(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["views"]))


def test_tiles_of_one_date_are_contrasted_with_another_mask_of_themselves(simulated, tmp_path):
    experiment = _experiment(simulated, "--config.num_steps=2")
    assert training_features(experiment.config, experiment.prepared.contract) == ["s1", "s2"]
    (objective,) = experiment.objectives.values()
    params = build.init_params(experiment.model, jax.random.key(0))
    _, metrics = objective.loss(params, jax.tree.map(jnp.asarray, _batch(experiment)), jax.random.key(0))
    assert 0 < float(metrics["loss_views"]) < 10
    assert pretrain.run(experiment.config, str(tmp_path / "w")) == 0


def test_training_on_two_dates_reads_both(two_dates, tmp_path):
    c = _experiment(two_dates, "--config.num_steps=2").config
    assert pretrain.run(c, str(tmp_path / "w")) == 0
    drawn = sets.open_for(c, two_dates)
    got = drawn.read("train", [3, 3 + 48], ["s2", "s2@2"])
    assert (got["s2"][0] == got["s2@2"][1]).all()
    assert (got["s2"][1] == got["s2@2"][0]).all()


def test_a_network_without_masked_tokens_is_refused(two_dates):
    with pytest.raises(InputError, match="contrast.views is 0.5, but model.family 'contrastive' has no masked pass"):
        _experiment(two_dates, "--config.model.family=contrastive")


def test_joint_tokens_are_averaged_over_those_with_data():
    rng = np.random.default_rng(0)
    groups = {"s1": rng.normal(size=(2, 3, 4)), "s2": rng.normal(size=(2, 3, 4))}
    ok = {"s1": np.array([[1, 1, 0], [1, 1, 1]], bool), "s2": None}
    arrays = jax.tree.map(jnp.asarray, (np.zeros((2, 4)), groups, ok))
    got = layers.joint_average(layers.Tokens(*arrays))
    expected = [
        (groups["s1"][0, :2].mean(0) + groups["s2"][0].mean(0)) / 2,
        (groups["s1"][1].mean(0) + groups["s2"][1].mean(0)) / 2,
    ]
    assert np.allclose(got, expected, atol=1e-6)
