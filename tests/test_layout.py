"""Invariants of the source tree: sensor names, pickle, defaults of configs, registered methods."""

import ast
import importlib
from pathlib import Path

import pytest

from fusionx_jax import methods
from tests.configs import goldens
from tests.helpers import ROOT

PACKAGES = ("fusionx_jax", "data", "configs", "experiments")


def sources(*packages):
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def test_no_sensor_is_named_in_the_library_outside_modalities():
    known = {"s1", "s2", "VV", "VH", "B04", "sar", "optical", "sentinel1", "sentinel2"}
    for path in sources("fusionx_jax"):
        if path.name == "modalities.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in known, f"{path}:{node.lineno} names {node.value!r}"


def test_nothing_is_pickled():
    for path in sources(*PACKAGES):
        tree = ast.parse(path.read_text())
        modules = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
        modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not modules & {"pickle", "cPickle", "dill", "cloudpickle", "shelve"}, path
        flags = [n.value for n in ast.walk(tree) if isinstance(n, ast.keyword) and n.arg == "allow_pickle"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in flags), path


def test_the_library_rebinds_no_global_variable():
    for path in sources("fusionx_jax"):
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Global)], path


def test_any_is_written_in_the_module_of_open_types_alone():
    for path in sources(*PACKAGES):
        names = [
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module == "typing"
            for alias in node.names
        ]
        assert path.name == "types.py" or "Any" not in names, path


@pytest.mark.parametrize("name", goldens.names())
def test_no_default_of_a_config_changes_silently(name):
    """After a deliberate change: python -m tests.configs.golden rewrites the golden files."""
    assert goldens.read(name) == goldens.content(name)


def test_every_golden_file_is_of_a_config():
    assert {p.relative_to(goldens.FOLDER).with_suffix("").as_posix() for p in goldens.FOLDER.rglob("*.json")} == set(
        goldens.names()
    )


@pytest.mark.parametrize("name", [n for n in goldens.names() if n.startswith("methods/")])
def test_every_method_config_is_registered_under_its_name(name):
    method = Path(name).name
    assert goldens.content(name).get("method", "fusionx") == method
    assert method in methods.METHODS


@pytest.mark.parametrize("name", goldens.names())
def test_the_docstring_of_a_config_gives_its_command(name):
    module = importlib.import_module(f"configs.{name.replace('/', '.')}")
    assert "\nRun: " in module.__doc__
    if "/" not in name and name != "default":
        assert "\nCost: " in module.__doc__
        assert "\nResult: " in module.__doc__ or "\nProtocol: " in module.__doc__
