import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from data.simulated import classes, optical, radar, world
from data.simulated.builder import Simulated

# The world is frozen: results are comparable only while its numbers stand. A new world is a new data set, with a new
# version beside its new checksum.
FROZEN = ("f23d301bdd8dff40", "ad176fda088516f0")

# Of the first 400 tiles of world 0, those with more than 1200 pixels of open water.
WITH_WATER = (11, 13, 34, 69, 71, 88, 128, 163, 164, 178, 179, 241, 258, 263, 298, 324, 332, 386)


def test_the_world_is_frozen():
    digest = hashlib.sha256()
    sensors = Simulated(20, 64, 0).describe().modalities
    for i in range(12):
        tile = world.simulate(0, i, 64)
        for values in (sensors["s1"].encode(tile.s1), sensors["s2"].encode(tile.s2), tile.pixels):
            digest.update(np.ascontiguousarray(values).tobytes())
    assert (world.VERSION, digest.hexdigest()[:16]) == FROZEN


def test_a_tile_is_a_pure_function_of_seed_and_index():
    a, b = world.simulate(3, 17, 32), world.simulate(3, 17, 32)
    assert (a.s1 == b.s1).all()
    assert (a.s2 == b.s2).all()
    assert (a.pixels == b.pixels).all()
    assert not np.array_equal(a.s1, world.simulate(3, 18, 32).s1)
    assert not np.array_equal(a.s1, world.simulate(4, 17, 32).s1)


def test_values_have_the_ranges_of_real_products():
    tiles = [world.simulate(0, i, 48) for i in range(60)]
    s1, s2 = np.stack([t.s1 for t in tiles]), np.stack([t.s2 for t in tiles])
    assert -50 < s1.min() < s1.max() < 45
    assert -18 < np.median(s1[..., 0]) < -7
    assert 4 < np.median(s1[..., 0] - s1[..., 1]) < 10
    assert s2.min() >= 1
    assert s2.max() <= 20000
    assert np.median(s2[..., optical.SPECTRA.shape[1] - 5]) > np.median(
        s2[..., 3]
    )  # near infrared over red: vegetation
    assert {t.pixels.dtype for t in tiles} == {np.dtype(np.uint8)}


def test_speckle_has_the_stated_number_of_looks():
    # Inside one parcel of open water everything but speckle is smooth.
    looks = []
    for i in WITH_WATER:
        t = world.simulate(0, i, 64)
        inside = t.pixels == classes.WATER
        inside[1:-1, 1:-1] &= (t.pixels[:-2, 1:-1] == classes.WATER) & (t.pixels[2:, 1:-1] == classes.WATER)
        if inside.sum() > 1200:
            power = 10 ** (t.s1[..., 0][inside] / 10)
            looks.append(power.mean() ** 2 / power.var())
    assert len(looks) == len(WITH_WATER)
    assert 3.0 < np.median(looks) < 4.8  # 4.4, less the texture of wind
    assert radar.ENL == 4.4


def test_splits_nest_as_the_set_grows():
    small, large = Simulated(50, 16, 0), Simulated(100, 16, 0)
    assert dict(small.splits()) == {"train": 35, "val": 5, "test": 10}
    for split, count in small.splits().items():
        assert small.example(split, count - 1)["id"] == large.example(split, count - 1)["id"]
    ids = [large.example(s, i)["id"] for s, n in large.splits().items() for i in range(n)]
    assert len(set(ids)) == 100


def test_labels_follow_from_pixels():
    example = Simulated(20, 32, 0).example("train", 3)
    share = np.bincount(example["label_pixel"].ravel(), minlength=12) / 32**2
    assert (example["label_multi"] == (share >= 0.05)).all()
    assert example["label_single"] == share.argmax()


@pytest.mark.slow
def test_pairs_of_classes_are_separable_where_the_docs_say_and_only_there():
    """A pixel-neighborhood classifier per sensor, tested on tiles it never saw."""

    tile_of, class_of, means = [], [], ([], [])
    corners = [(slice(r, r + 8), slice(c, c + 8)) for r in range(0, 64, 8) for c in range(0, 64, 8)]
    for i in range(1500):
        t = world.simulate(1, i, 64)
        for window in corners:
            inside = t.pixels[window]
            if (inside == inside[0, 0]).all():
                tile_of.append(i)
                class_of.append(inside[0, 0])
                means[0].append(t.s1[window].mean((0, 1)))
                means[1].append(t.s2[window].mean((0, 1)))
    tile_of, class_of = np.array(tile_of), np.array(class_of)

    def auc(a, b, sensor):
        chosen = np.isin(class_of, (a, b))
        x, y, train = np.array(means[sensor])[chosen], class_of[chosen] == b, tile_of[chosen] < 1000
        x = (x - x.mean(0)) / x.std(0)
        model = LogisticRegression(max_iter=500).fit(x[train], y[train])
        return roc_auc_score(y[~train], model.decision_function(x[~train]))

    sar, optical = 0, 1
    assert auc(classes.CONIFER, classes.BROADLEAF, optical) > 0.85
    assert auc(classes.CONIFER, classes.BROADLEAF, sar) < 0.65
    assert auc(classes.FLOODED, classes.BROADLEAF, sar) > 0.85
    assert auc(classes.FLOODED, classes.BROADLEAF, optical) < 0.65
    assert auc(classes.ORCHARD, classes.WOODLAND, optical) < 0.65  # means do not show rows
    assert auc(classes.ORCHARD, classes.WOODLAND, sar) < 0.65
    assert auc(classes.PADDY, classes.CROP, sar) > 0.7
    assert auc(classes.PADDY, classes.WETLAND, optical) > 0.7
    assert auc(classes.PADDY, classes.CROP, optical) < 0.65
    assert auc(classes.PADDY, classes.WETLAND, sar) < 0.65
