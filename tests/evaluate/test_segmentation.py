import dataclasses
import functools

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from fusionx_jax.contract import IGNORE_LABEL
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import batches, segmentation
from fusionx_jax.models import peers
from tests.evaluate import toy

SETTINGS = segmentation.Settings(batch_size=16, num_steps=40, learning_rate=1e-2, weight_decay=1e-2)
ALL = np.arange(toy.SPLITS["train"])


@functools.cache
def toy_set():
    return toy.ToySet()


@functools.cache
def statistics():
    """Mean and deviation of each patch: tokens without a network, quick to compile."""
    network = toy.encoder(toy_set())
    return dataclasses.replace(network, model=peers.PatchStatistics(network.model.config), params={})


def trainer(encoder, head, **changes):
    reader = batches.DeviceReader(toy_set(), ["s1", "s2", "label_pixel"])
    settings = dataclasses.replace(SETTINGS, **changes)
    return segmentation.HeadTrainer(encoder, reader, "label_pixel", len(toy.PIXEL), settings, head=head)


@functools.cache
def trained(head):
    """A trainer on the tokens of FusionX (linear) or of patch statistics (decoder), and its trained head."""
    chosen = trainer(toy.encoder(toy_set()) if head == "linear" else statistics(), head)
    return chosen, chosen.train(ALL, 0, toy.Count())


@pytest.mark.parametrize("head", ["linear", "decoder"])
def test_separable_pixel_labels_are_learned_from_frozen_tokens(head):
    chosen, params = trained(head)
    counts = chosen.confusion(params, "test").sum(0)
    iou = np.diagonal(counts) / (counts.sum(0) + counts.sum(1) - np.diagonal(counts))
    assert iou.min() > 0.95
    untrained = chosen.confusion(jax.tree.map(np.zeros_like, params), "test").sum(0)
    labels = toy_set().read("test", np.arange(48), ["label_pixel"])["label_pixel"]
    assert untrained.tolist() == [[(labels == k).sum(), 0] for k in range(2)]  # equal logits are the first class


def upsampled(grid, side):
    """Bilinear interpolation [h, w, K] to [side, side, K] between the centers of patches, constant beyond them."""
    rows, columns, classes = grid.shape
    at = (np.arange(side) + 0.5) * rows / side - 0.5
    tall = np.stack([[np.interp(at, np.arange(rows), grid[:, c, k]) for c in range(columns)] for k in range(classes)])
    wide = np.stack([[np.interp(at, np.arange(columns), tall[k, :, r]) for r in range(side)] for k in range(classes)])
    return wide.transpose(1, 2, 0)


def test_confusion_counts_are_those_of_numpy_and_skip_unlabeled_pixels():
    chosen, params = trained("linear")
    found = chosen.confusion(params, "test")
    tiles = toy_set().read("test", np.arange(8), ["s1", "s2", "label_pixel"])
    labels = tiles.pop("label_pixel")
    assert (labels[:, *toy.UNLABELED] == IGNORE_LABEL).all()
    tokens = np.asarray(jax.jit(functools.partial(segmentation.token_map, toy.encoder(toy_set())))(tiles), np.float64)
    normed = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    dense = jax.tree.map(np.asarray, params["params"]["classes"])
    grids = normed @ dense["kernel"] + dense["bias"]
    for grid, truth, counts in zip(grids, labels, found):
        predicted = upsampled(grid, toy.SIDE).argmax(-1)
        known = truth != IGNORE_LABEL
        expected = confusion_matrix(truth[known], predicted[known], labels=[0, 1])
        assert np.abs(counts - expected).sum() <= 2  # a pixel on the edge may fall on either side
        assert counts.sum() == toy.SIDE**2 - 1


def test_shares_are_those_of_the_labeled_pixels_and_unknown_without_any():
    class OneUnlabeled(toy.ToySet):
        def read(self, split, indices, features):
            out = super().read(split, indices, features)
            labels = out["label_pixel"].copy()
            labels[np.asarray(indices) == 2] = IGNORE_LABEL
            return out | {"label_pixel": labels}

    prepared = OneUnlabeled()
    found = segmentation.shares(prepared, "test", "label_pixel", 2)
    labels = prepared.read("test", np.arange(48), ["label_pixel"])["label_pixel"]
    for tile, share in zip(labels, found):
        known = tile[tile != IGNORE_LABEL]
        expected = [np.mean(known == k) if len(known) else np.nan for k in range(2)]
        assert np.allclose(share, expected, equal_nan=True)
    assert np.isnan(found).any(1).sum() == 1


def test_unlabeled_pixels_do_not_enter_the_loss():
    """Whatever is under them, the trained head is the same."""
    quick = trainer(statistics(), "linear", num_steps=3)
    params = quick.train(ALL, 0, toy.Count())

    class OtherCode(toy.ToySet):
        def read(self, split, indices, features):
            out = super().read(split, indices, features)
            return out | {
                "label_pixel": np.where(out["label_pixel"] == IGNORE_LABEL, 2, out["label_pixel"]).astype(np.uint8)
            }

    reader = batches.DeviceReader(OtherCode(), ["s1", "s2", "label_pixel"])
    settings = dataclasses.replace(SETTINGS, num_steps=3)
    other = segmentation.HeadTrainer(statistics(), reader, "label_pixel", 2, settings, head="linear")
    again = other.train(ALL, 0, toy.Count())
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again)))


def test_an_unknown_head_and_a_network_without_a_token_per_patch_are_refused():
    with pytest.raises(InputError, match="head is 'forest'"):
        trainer(statistics(), "forest")
    resnet = toy.encoder(toy_set(), "resnet")  # its stride is 8, the patches are of 4 pixels
    with pytest.raises(InputError, match="4 tokens per tile, but a tile has 4 x 4 patches"):
        trainer(resnet, "linear").train(ALL, 0, toy.Count())


def counts_on_devices():
    """Confusion counts after a short training on 10 tiles, split over all devices."""
    few = trainer(statistics(), "linear", num_steps=10)
    return {"confusion": few.confusion(few.train(ALL[:10], 0, toy.Count()), "test")}
