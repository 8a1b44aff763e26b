import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from fusionx_jax import config as config_lib
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import batches, label_training
from fusionx_jax.evaluate.evaluators import base
from fusionx_jax.evaluate.evaluators.probe import LinearProbe, linear_starts
from fusionx_jax.evaluate.labels import Labels
from fusionx_jax.evaluate.records import CellKey, LabelBudget, ModalitySet
from fusionx_jax.models import build
from tests.evaluate import toy
from tests.helpers import ROOT, run_script

SETTINGS = label_training.Settings(
    batch_size=16,
    num_steps=24,
    min_steps=4,
    eval_every=8,
    holdout=0.25,
    patience=0,
    learning_rates=(3e-3,),
    weight_decay=0.0,
    warmup_share=0.1,
    layer_decays=(1.0,),
    drop_path=0.0,
    ema=0.5,
    unfreeze=-1,
)
ALL = np.arange(toy.SPLITS["train"])
FAMILIES = ("fusionx", "resnet")


@functools.cache
def toy_set():
    return toy.ToySet()


@functools.cache
def encoder(family):
    return toy.encoder(toy_set(), family)


@functools.cache
def trainer(family, kind="multi", scratch=False, **changes):
    network = encoder(family)
    initial = (lambda seed: build.init_params(network.model, jax.random.key(seed))) if scratch else None
    return label_training.LabelTrainer(
        network,
        batches.DeviceReader(toy_set(), ["s1", "s2"]),
        label_training.Task(kind, toy_set().targets(kind)),
        dataclasses.replace(SETTINGS, **changes),
        pooling="mean_std",
        initial=initial,
    )


def copied(tree):
    """The buffers of a state are donated to the next step."""
    return jax.tree.map(np.array, tree)


@functools.cache
def trajectory(family, layer_decay=1.0, **changes):
    """The first six states of a training, after the initial parameters."""
    states = trainer(family, **changes).states(ALL, 0, 1e-2, 24, layer_decay=layer_decay)
    initial = copied(encoder(family).params["encoder"])
    return initial, [copied(state) for state, _ in zip(states, range(6))]


def average_precision(scores, kind="multi"):
    return average_precision_score(toy_set().targets(kind)["test"], scores, average="macro")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scratch", [False, True], ids=["finetune", "scratch"])
def test_separable_labels_are_learned(family, scratch):
    """Of two learning rates, the negative one unlearns them."""
    bar = toy.Count()
    chosen = trainer(family, scratch=scratch, learning_rates=(-3e-3, 3e-3))
    outcome = chosen.train(ALL, 0, bar)
    assert average_precision(outcome.scores) > 0.95
    assert outcome.learning_rate == 3e-3
    assert bar.steps == 3 * outcome.num_steps == 72  # two candidates and the final training


def test_labels_that_say_nothing_of_the_pixels_are_not_learned():
    rng = np.random.default_rng(0)
    shuffled = {s: rng.permutation(t) for s, t in toy_set().targets("multi").items()}
    blind = label_training.LabelTrainer(
        encoder("resnet"),
        batches.DeviceReader(toy_set(), ["s1", "s2"]),
        label_training.Task("multi", shuffled),
        SETTINGS,
        pooling="mean_std",
    )
    assert average_precision(blind.train(ALL, 0, toy.Count()).scores) < 0.85


def sign_changes_after(steps):
    """A schedule whose learning rate changes its sign: from then on training unlearns."""
    return lambda self, peak, total: lambda step: np.float32(peak if step < steps else -peak)


def test_the_step_with_the_lowest_loss_on_labels_held_out_is_trained_to_with_all_labels(monkeypatch):
    single = trainer("resnet", "single", ema=0.0, eval_every=4)
    monkeypatch.setattr(label_training.Settings, "schedule", sign_changes_after(8))
    outcome = single.train(ALL, 1, toy.Count())
    targets = toy_set().targets("single")["train"]
    held = label_training.hold_out(targets, SETTINGS.holdout, 1)
    losses = {}
    for step, state in enumerate(single.states(ALL[~held], 1, 3e-3, 24), start=1):
        if step % 4 == 0:
            losses[step] = single.loss(state.params, ALL[held])
    assert outcome.step == min(losses, key=losses.get) <= 12
    assert losses[24] > 2 * losses[outcome.step]
    final = [copied(s.params) for s, _ in zip(single.states(ALL, 1, 3e-3, 24), range(outcome.step))][-1]
    tiles = np.arange(toy.SPLITS["test"])
    assert np.allclose(outcome.scores, single.scores(final, "test", tiles), atol=1e-5)
    truth = toy_set().targets("single")["test"].argmax(1)
    assert (outcome.scores.argmax(1) == truth).mean() > 0.9


def test_a_training_ends_after_its_patience(monkeypatch):
    monkeypatch.setattr(label_training.Settings, "schedule", sign_changes_after(8))
    chosen = trainer("resnet", "single", ema=0.0, eval_every=4, patience=1)
    taken = []
    states = chosen.states
    monkeypatch.setattr(chosen, "states", lambda *a, **k: (taken.append(1) or s for s in states(*a, **k)))
    bar = toy.Count()
    outcome = chosen.train(ALL, 1, bar)
    assert outcome.step < 24
    assert len(taken) < 2 * 24
    assert bar.steps == 2 * 24  # the bar ends where it would without


def test_of_several_layer_decays_the_one_with_the_lowest_loss_is_selected():
    """With a rate far too high for the encoder, decay that all but freezes it is better."""
    chosen = trainer("resnet", "single", ema=0.0, learning_rates=(0.3,), layer_decays=(1e-6, 1.0))
    outcome = chosen.train(ALL, 0, toy.Count())
    assert chosen.num_trainings() == 3
    assert outcome.layer_decay == 1e-6


def test_losses_are_those_of_scikit_learn():
    single, multi = trainer("resnet", "single", ema=0.0, eval_every=4), trainer("resnet")
    for chosen, kind in ((multi, "multi"), (single, "single")):
        state = next(s for step, s in enumerate(chosen.states(ALL, 0, 1e-2, 24)) if step == 4)
        truth, scores = toy_set().targets(kind)["train"], chosen.scores(state.params, "train", ALL).astype(np.float64)
        if kind == "multi":
            expected = np.mean([log_loss(t, 1 / (1 + np.exp(-s))) for t, s in zip(truth.T, scores.T)])
        else:
            share = np.exp(scores - scores.max(1, keepdims=True))
            expected = log_loss(truth.argmax(1), share / share.sum(1, keepdims=True))
        assert chosen.loss(state.params, ALL) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("labels", "held"), [(64, 13), (5, 1), (2, 1)])
def test_a_fifth_of_the_labels_is_held_out_one_at_least(labels, held):
    targets = toy_set().targets("multi")["train"][:labels]
    masks = [label_training.hold_out(targets, 0.2, seed) for seed in range(4)]
    assert {int(m.sum()) for m in masks} == {held}
    assert labels < 5 or len({m.tobytes() for m in masks}) > 1
    if labels == 64:
        assert all(abs(targets[m].mean(0) - targets.mean(0)).max() < 0.15 for m in masks)


def test_one_label_is_refused():
    with pytest.raises(InputError, match="too few to train on"):
        label_training.hold_out(np.ones((1, 2)), 0.2, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_moving_average_is_the_closed_form_of_the_steps_parameters(family):
    initial, states = trajectory(family)
    weights = 0.5 ** np.arange(len(states) - 1, -1, -1) * 0.5
    for leaf, average, *steps in zip(
        jax.tree.leaves(initial),
        jax.tree.leaves(states[-1].average["encoder"]),
        *(jax.tree.leaves(s.params["encoder"]) for s in states),
    ):
        expected = 0.5 ** len(states) * leaf + sum(w * p.astype(np.float64) for w, p in zip(weights, steps))
        assert np.allclose(average, expected, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(average, steps[-1])
    assert states[-1].scored_params is states[-1].average


FUSIONX_DISTANCES = {
    "embed_s1": 4, "embed_s2": 4, "own_s1": [3, 2], "own_s2": [3, 2], "fusion_norm_s1": 1, "fusion_norm_s2": 1,
    "fusion_s1": 1, "fusion_s2": 1, "fusion_mlp_norm": 1, "fusion_mlp": 1, "class_token": 1, "blocks": [0], "norm": 0,
}  # fmt: skip
RESNET_DISTANCES = {
    "stem": 3,
    **{f"stage{s}_block0_{part}": 2 - s for s in range(3) for part in ("norm1", "conv1", "norm2", "conv2", "shortcut")},
    "norm": 0,
}


def distance(family, path):
    """Blocks between a parameter and the last block, counted by hand for the toy networks."""
    value = (FUSIONX_DISTANCES if family == "fusionx" else RESNET_DISTANCES)[path[0].key]
    return np.array(value)


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_scales_the_first_update_of_every_block(family):
    """The head starts at zero and the first step's rate is zero: the encoder first moves in step 3, by gradients that
    do not depend on the decay."""
    initial, plain = trajectory(family)
    _, decayed = trajectory(family, layer_decay=0.5)
    for (path, start), full, part in zip(
        jax.tree_util.tree_leaves_with_path(initial),
        jax.tree.leaves(plain[2].params["encoder"]),
        jax.tree.leaves(decayed[2].params["encoder"]),
    ):
        blocks = distance(family, path)
        factor = 0.5 ** (blocks + 1.0)
        factor = factor.reshape(-1, *[1] * (start.ndim - 1)) if blocks.ndim else factor
        assert np.abs(full - start).max() > 1e-4, path
        assert np.allclose(part - start, factor * (full - start), rtol=1e-3, atol=3e-7), path
    for full, part in zip(jax.tree.leaves(plain[2].params["head"]), jax.tree.leaves(decayed[2].params["head"])):
        assert np.array_equal(full, part)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unfreeze", [0, 1])
def test_only_the_last_blocks_are_trained_when_the_others_are_frozen(family, unfreeze):
    initial, states = trajectory(family, unfreeze=unfreeze)
    for (path, start), last in zip(
        jax.tree_util.tree_leaves_with_path(initial), jax.tree.leaves(states[-1].params["encoder"])
    ):
        blocks = distance(family, path)
        rows = zip(start, last, blocks) if blocks.ndim else [(start, last, blocks)]
        for before, after, number in rows:
            assert np.array_equal(before, after) == (number >= unfreeze), path
    assert np.abs(states[-1].params["head"]["kernel"]).max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_leaves_branches_out_in_training_alone(family):
    plain = encoder(family)
    config = dataclasses.replace(plain.model.config, drop_path=0.5)
    dropping = dataclasses.replace(plain, model=plain.model.clone(config=config))
    wire = jax.tree.map(jnp.asarray, toy_set().read("test", np.arange(8), ["s1", "s2"]))
    pooled = jax.jit(lambda key: dropping.pooled(wire, None if key is None else {"drop_path": key})["class"])
    first, second = (np.asarray(pooled(jax.random.key(k))) for k in (0, 1))
    assert np.abs(first - second).max() > 1e-3
    assert np.allclose(pooled(None), jax.jit(lambda: plain.pooled(wire)["class"])(), atol=1e-5)


def test_steps_grow_with_the_square_root_of_the_labels():
    settings = dataclasses.replace(SETTINGS, num_steps=100, min_steps=20)
    assert [settings.steps(n, 400) for n in (400, 100, 4)] == [100, 50, 20]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_decays": (0.5, 0.0)}, "layer_decays is"),
        ({"layer_decays": ()}, "layer_decays is"),
        ({"holdout": 0.6}, "holdout is 0.6"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"ema": -0.1}, "ema -0.1"),
        ({"unfreeze": -2}, "unfreeze is -2"),
    ],
)
def test_options_out_of_range_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SETTINGS, **change)


ON_DEVICES = """
import sys
import jax, numpy as np
from tests.evaluate import test_label_training, test_segmentation
assert jax.local_device_count() == int(sys.argv[2])
np.savez(sys.argv[1], **test_label_training.scores_on_devices(), **test_segmentation.counts_on_devices())
"""


def scores_on_devices():
    """Scores of short trainings whose batches of 16 and of 10 tiles are split over all devices."""
    subsets = {"16 tiles": ALL, "10 tiles": ALL[:10]}
    few = trainer("resnet", num_steps=6, eval_every=6)
    return {name: few.train(subset, 0, toy.Count()).scores for name, subset in subsets.items()}


@pytest.mark.slow
def test_four_devices_give_the_scores_of_one(tmp_path):
    out = {}
    for count in (1, 4):
        path = str(tmp_path / f"{count}.npz")
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        done = run_script(ON_DEVICES, path, str(count), env=flags)
        assert done.returncode == 0, done.stderr
        with np.load(path) as stored:
            out[count] = dict(stored)
    assert out[1].keys() == out[4].keys() == {"16 tiles", "10 tiles", "confusion"}
    for name in ("16 tiles", "10 tiles"):
        assert np.allclose(out[1][name], out[4][name], atol=1e-3)
    assert np.abs(out[1]["confusion"] - out[4]["confusion"]).sum() <= 2  # pixels at the edge of two classes


def _start(width, classes, seed=0):
    rng = np.random.default_rng(seed)
    values = (
        rng.normal(size=width),
        0.5 + rng.random(width),
        rng.normal(size=(width, classes)),
        rng.normal(size=classes),
    )
    return label_training.LinearStart(*(v.astype(np.float32) for v in values))


def test_fine_tuning_starts_from_a_linear_layer_on_features_standardized_by_fixed_numbers():
    chosen, tiles = trainer("resnet", ema=0.0), np.arange(toy.SPLITS["test"])
    wire = jax.tree.map(jnp.asarray, toy_set().read("test", tiles, ["s1", "s2"]))
    features = np.asarray(encoder_lib.assemble(jax.jit(encoder("resnet").pooled)(wire), "mean_std"), np.float64)
    start = _start(features.shape[1], 2)
    expected = ((features - start.center) / start.scale) @ start.kernel + start.bias
    first = chosen._start(0, start).params
    assert np.allclose(chosen.scores(first, "test", tiles), expected, rtol=1e-3, atol=1e-3)
    states = chosen.states(ALL, 0, 1e-2, 24, start)
    last = [copied(state) for state, _ in zip(states, range(4))][-1]
    assert np.array_equal(last.params["standard"]["center"], start.center)
    assert np.array_equal(last.params["standard"]["scale"], start.scale)
    assert not np.array_equal(last.params["head"]["kernel"], start.kernel)


def _linear_problem(kind, features):
    """A problem whose source gives made-up features, and its label subsets."""
    keys = [CellKey(LabelBudget(0.5), seed) for seed in (0, 1)]
    rng = np.random.default_rng(3)
    subsets = {key: np.sort(rng.permutation(len(ALL))[:40]) for key in keys}
    labels = Labels(kind, kind, f"label_{kind}", toy.MULTI, toy_set().targets(kind), {}, None)
    settings = config_lib.load_file(str(ROOT / "configs/demo.py")).evaluate
    source = base.Source("m", ModalitySet(("s1", "s2")), features.get, None, encoder("resnet"))
    return source, base.Problem(labels, subsets, settings, toy_set()), keys


@pytest.mark.parametrize("kind", ["multi", "single"])
def test_the_linear_layer_to_start_from_is_the_linear_probe(kind):
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(2, 12))
    features = {s: t @ mix + rng.normal(0, 0.3, (len(t), 12)) + 5 for s, t in toy_set().targets(kind).items()}
    source, problem, keys = _linear_problem(kind, features)
    starts = linear_starts(source, problem, keys)
    probed = [scored for group in LinearProbe().score(source, problem, keys) for scored in group]
    assert len(probed) == len(starts) == 2
    for scored in probed:
        start = starts[scored.key]
        ours = ((features["test"] - start.center) / start.scale) @ start.kernel + start.bias
        assert np.allclose(ours, scored.scores, rtol=1e-3, atol=1e-3)


def test_a_probe_that_training_only_worsens_is_kept():
    chosen = trainer("resnet", "single", ema=0.0, learning_rates=(-3e-2,))
    pooled = {
        split: np.asarray(
            encoder_lib.assemble(
                jax.jit(encoder("resnet").pooled)(
                    jax.tree.map(jnp.asarray, toy_set().read(split, np.arange(count), ["s1", "s2"]))
                ),
                "mean_std",
            )
        )
        for split, count in toy.SPLITS.items()
    }
    source, problem, keys = _linear_problem("single", pooled)
    start = linear_starts(source, problem, keys)[keys[0]]
    starts = label_training.Starts(start, start)
    outcome = chosen.train(problem.subsets[keys[0]], 0, toy.Count(), starts=starts)
    assert (outcome.step, outcome.learning_rate) == (0, 0.0)
    expected = ((pooled["test"] - start.center) / start.scale) @ start.kernel + start.bias
    assert np.allclose(outcome.scores, expected, rtol=1e-2, atol=1e-2)
