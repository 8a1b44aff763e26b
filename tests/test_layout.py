"""What must hold of the tree itself: names nothing knows, words nothing says, defaults that do not drift."""

import ast
import json
from pathlib import Path

import pytest

from fusionx_jax import config
from tests.helpers import ROOT

GOLDEN = Path(__file__).parent / "configs" / "golden"


def test_no_sensor_is_named_in_the_library_outside_modalities():
    known = {"s1", "s2", "VV", "VH", "B04", "sar", "optical", "sentinel1", "sentinel2"}
    for path in (ROOT / "fusionx_jax").rglob("*.py"):
        if path.name == "modalities.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in known, f"{path}:{node.lineno} names {node.value!r}"


def test_nothing_is_pickled():
    for folder in ("fusionx_jax", "data", "configs", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text
            assert "allow_pickle=True" not in text


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__"))
def test_no_default_of_a_config_changes_silently(name):
    """After a deliberate change: python -m tests.configs.golden rewrites the golden files."""
    now = config.to_json(config.load_file(str(ROOT / "configs" / f"{name}.py")))
    assert now == json.loads((GOLDEN / f"{name}.json").read_text())
