import itertools

import pytest

from fusionx_jax import methods


def test_no_two_methods_look_alike():
    for a, b in itertools.combinations(methods.METHODS.values(), 2):
        if {a.name, b.name} == {"supervised", "supervised_vit"}:  # one network, as a baseline and as a method
            continue
        assert a.label != b.label
        assert a.short != b.short
        assert (a.color, a.marker) != (b.color, b.marker)


def test_a_method_that_is_not_registered_keeps_its_name_and_comes_last():
    look = methods.presentation("mine/mask_ratio=0.9")
    assert (look.name, look.label, look.short) == ("mine/mask_ratio=0.9",) * 3
    assert methods.presentation("mine/mask_ratio=0.9") == look
    assert methods.in_table_order(["mine", "croma", "fusionx", "mine", "other"]) == [
        "fusionx",
        "croma",
        "mine",
        "other",
    ]


def test_a_registered_method_is_shown_as_registered_and_once():
    added = methods.register(methods.Method("mine", "Mine", "Mine", "#123456", "o"))
    try:
        assert methods.presentation("mine") == added
        assert methods.in_table_order(["other", "mine"]) == ["mine", "other"]
        with pytest.raises(ValueError, match="'mine' is registered twice"):
            methods.register(added)
    finally:
        methods.METHODS.unregister("mine")
