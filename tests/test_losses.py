import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusionx_jax import losses, masking


def _setup(valid_share=1.0):
    rng = np.random.default_rng(0)
    patches = {"s1": rng.normal(3, 2, (4, 9, 8)), "s2": rng.normal(-1, 0.5, (4, 9, 12))}
    masks = masking.Independent()(jax.random.key(0), 4, {"s1": (3, 3), "s2": (3, 3)}, {"s1": 3, "s2": 5})
    valid = {m: rng.random(p.shape) < valid_share for m, p in patches.items()}
    return patches, masks, valid, rng


def _reference(predicted, patches, mask, kind, valid):
    """The loss of one modality in plain loops."""
    errors = []
    for b in range(len(patches)):
        for i in np.asarray(mask.hidden)[b]:
            ok = valid[b, i]
            mean, deviation = patches[b, i][ok].mean(), np.sqrt(patches[b, i][ok].var() + 1e-6)
            parts = {"raw": [patches[b, i]], "normalized": [(patches[b, i] - mean) / deviation]}
            aims = parts["normalized"] + parts["raw"] if kind == "both" else parts[kind]
            for k, aim in enumerate(aims):
                patch = predicted[b, i].reshape(len(aims), -1)[k]
                errors += list(((patch - aim) ** 2)[ok])
    return np.mean(errors)


def _hidden(patches, masks):
    return {m: jnp.take_along_axis(jnp.asarray(p), masks[m].hidden[..., None], axis=1) for m, p in patches.items()}


@pytest.mark.parametrize("kind", ["raw", "normalized", "both"])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_reconstruction_loss_equals_plain_loops_over_hidden_valid_pixels(kind, share):
    patches, masks, valid, rng = _setup(share)
    predicted = {
        m: rng.normal(size=(*p.shape[:2], p.shape[2] * (2 if kind == "both" else 1))) for m, p in patches.items()
    }
    weights = {"s1": 1.0, "s2": 0.5}
    total, by = losses.reconstruction(
        _hidden(predicted, masks), jax.tree.map(jnp.asarray, patches), masks, kind, weights,
        None if share == 1.0 else jax.tree.map(jnp.asarray, valid),
    )  # fmt: skip
    for m in patches:
        assert float(by[m]) == pytest.approx(_reference(predicted[m], patches[m], masks[m], kind, valid[m]), rel=1e-4)
    assert float(total) == pytest.approx(float(by["s1"] + 0.5 * by["s2"]), rel=1e-6)


def test_perfect_prediction_has_no_loss_and_draws_the_truth():
    patches, masks, _, _ = _setup()
    patches = jax.tree.map(jnp.asarray, patches)
    for kind in ("raw", "normalized", "both"):
        aim = {m: losses.targets(p, kind) for m, p in patches.items()}
        total, _ = losses.reconstruction(_hidden(aim, masks), patches, masks, kind, {"s1": 1.0, "s2": 1.0})
        assert total < 1e-10
        for m, p in patches.items():
            assert np.allclose(losses.undo_normalization(aim[m], p, kind), p, atol=1e-4)


def test_normalized_targets_are_not_pooled_across_modalities():
    patches, _, _, _ = _setup()
    for p in patches.values():
        aim = losses.targets(jnp.asarray(p), "normalized")
        assert np.allclose(aim.mean(-1), 0, atol=1e-4)
        assert np.allclose(aim.std(-1), 1, atol=1e-3)


def test_hidden_slots_that_do_not_count_are_left_out_of_the_loss():
    patches, _, valid, rng = _setup(0.7)
    predicted = {m: jnp.asarray(rng.normal(size=p.shape)) for m, p in patches.items()}
    shares = masking.Dirichlet(1.0)(jax.random.key(1), 4, {"s1": (3, 3), "s2": (3, 3)}, {"s1": 3, "s2": 5})
    _, by = losses.reconstruction(
        _hidden(predicted, shares), jax.tree.map(jnp.asarray, patches), shares, "raw", {"s1": 1.0, "s2": 1.0},
        jax.tree.map(jnp.asarray, valid),
    )  # fmt: skip
    for m, p in patches.items():
        hidden = np.zeros(p.shape[:2], bool)
        np.put_along_axis(hidden, np.asarray(shares[m].hidden), np.asarray(shares[m].hidden_ok), axis=1)
        counted = hidden[..., None] & valid[m]
        assert float(by[m]) == pytest.approx(((np.asarray(predicted[m]) - p) ** 2)[counted].mean(), rel=1e-4)


def test_info_nce_is_the_cross_entropy_of_scikit_learn_both_ways():
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 5))
    ours, hits = losses.info_nce({"s1": jnp.asarray(a), "s2": jnp.asarray(b)}, 0.5)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    logits = unit[0] @ unit[1].T / 0.5
    both = []
    for scores in (logits, logits.T):
        probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        both.append(log_loss(np.arange(6), probability, labels=np.arange(6)))
    assert float(ours) == pytest.approx(np.mean(both), rel=1e-4)
    assert float(hits) == pytest.approx(
        np.mean([(scores.argmax(1) == np.arange(6)).mean() for scores in (logits, logits.T)]), rel=1e-5
    )
    assert losses.info_nce({"s1": jnp.asarray(a), "s2": jnp.asarray(a)}, 0.01)[1] == 1.0
    present = {"s1": jnp.array([True, True, False, True, True, True]), "s2": jnp.array([True] * 5 + [False])}
    few, _ = losses.info_nce({"s1": jnp.asarray(a), "s2": jnp.asarray(b)}, 0.5, present)
    pairs, alone = [0, 1, 3, 4], []  # s1 also has tile 5, s2 also tile 2: negatives of the other sensor's tiles
    for scores in (logits[:, [0, 1, 3, 4, 2]][pairs], logits.T[:, [0, 1, 3, 4, 5]][pairs]):
        probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        alone.append(log_loss(np.arange(4), probability, labels=np.arange(5)))
    assert float(few) == pytest.approx(np.mean(alone), rel=1e-4)
    none, _ = losses.info_nce({"s1": jnp.asarray(a), "s2": jnp.asarray(b)}, 0.5, {"s1": jnp.zeros(6, bool)})
    assert float(none) == 0.0
    twice = {"s1": jnp.asarray(a[[0, 1, 2, 0]]), "s2": jnp.asarray(b[[0, 1, 2, 0]])}  # no tile is its own negative
    same = jnp.eye(4, dtype=bool).at[0, 3].set(True).at[3, 0].set(True)
    once, _ = losses.info_nce({n: x[:3] for n, x in twice.items()}, 0.5)
    rows = -np.diagonal(logits[:3, :3] - np.log(np.exp(logits[:3, :3]).sum(1, keepdims=True)))
    columns = -np.diagonal(logits.T[:3, :3] - np.log(np.exp(logits.T[:3, :3]).sum(1, keepdims=True)))
    assert float(once) == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-4)
    doubled, _ = losses.info_nce(twice, 0.5, None, same)
    # Tiles 1 and 2 have the doubled tile as two negatives, the doubled one has neither of itself.
    by_tile = [rows[0] + columns[0]] * 2
    for tile, other in ((1, 2), (2, 1)):
        for scores in (logits, logits.T):
            negatives = 2 * np.exp(scores[tile, 0]) + np.exp(scores[tile, other])
            by_tile.append(np.log(np.exp(scores[tile, tile]) + negatives) - scores[tile, tile])
    assert float(doubled) == pytest.approx(sum(by_tile) / 8, rel=1e-4)
    nothing = jnp.asarray(a).at[2].set(0.0)  # an example of which nothing is visible
    slope = jax.grad(lambda x: losses.info_nce({"s1": x, "s2": jnp.asarray(b)}, 0.5)[0])(nothing)
    assert np.isfinite(slope).all()
