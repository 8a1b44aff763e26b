"""The protocol and layer groups of every registered network."""

import dataclasses

import jax
import numpy as np
import pytest

from fusionx_jax.models import build, network, peers

CONFIG = network.NetworkConfig((("s1", 2), ("s2", 3)), 4, network.Size(16, 4, 2, 8, 1, 2))

# Distance of each part of the encoder from its last block; a list has a number per scanned block.
FUSION = {"fusion_norm_s1", "fusion_s1", "fusion_norm_s2", "fusion_s2", "fusion_mlp_norm", "fusion_mlp", "class_token"}
SEPARATE = {
    f"own_{n}/{part}": d for n in ("s1", "s2") for part, d in (("blocks", [4, 3, 2, 1, 0]), ("norm", 0), ("embed", 5))
}
EXPECTED = {
    "fusionx": (
        {"own_depth": 3},
        {"blocks": [0], "norm": 0, **dict.fromkeys(FUSION, 1), "own_s1": [4, 3, 2], "own_s2": [4, 3, 2],
         "embed_s1": 5, "embed_s2": 5},
    ),
    "stacked": ({}, {"blocks": [3, 2, 1, 0], "norm": 0, "first": 4, "class_token": 4, "embed_stacked": 5}),
    "croma": (
        {},  # 5 blocks a token: radar 3 + 2 in the cross encoder, optical 5
        {"cross": [1, 0], "cross_norm": 0, "own_s1/blocks": [4, 3, 2], "own_s1/norm": 2, "own_s1/embed": 7,
         "own_s2/blocks": [6, 5, 4, 3, 2], "own_s2/norm": 2, "own_s2/embed": 7},
    ),
    "separate": ({}, SEPARATE),
    "contrastive": ({}, SEPARATE),
    "resnet": (
        {},
        {"norm": 0, "stem": 6, "stage0_block0": 5, "stage0_block1": 4, "stage1_block0": 3, "stage1_block1": 2,
         "stage2_block0": 1, "stage2_block1": 0},
    ),
}  # fmt: skip


def encoder_shapes(model):
    return jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))["encoder"]


def test_every_registered_network_is_covered_here():
    assert set(EXPECTED) == set(build.NETWORKS)


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_layer_groups_are_the_blocks_from_the_head_down(family):
    changes, expected = EXPECTED[family]
    model = build.NETWORKS[family](dataclasses.replace(CONFIG, **changes))
    assert isinstance(model, network.Network)
    shapes = encoder_shapes(model)
    groups = model.layer_groups(shapes)
    assert jax.tree.all(
        jax.tree.map(lambda d, x: np.broadcast_shapes(d.shape, x.shape) == x.shape, groups.distance, shapes)
    )
    seen = set()
    for path, distance in jax.tree_util.tree_leaves_with_path(groups.distance):
        name = "/".join(k.key for k in path)
        part = max((p for p in expected if name.startswith(p)), key=len)
        assert distance.ravel().tolist() == np.ravel(expected[part]).tolist(), name
        seen.add(part)
    assert seen == set(expected)
    assert groups.deepest == max(np.max(d) for d in expected.values())


def test_a_network_without_parameters_has_no_groups():
    assert peers.PatchStatistics(CONFIG).layer_groups({}) == ({}, 0)
