"""Golden files of the configs: what each one changes of configs/default.py; default.json itself is complete."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionx_jax import config

FOLDER = Path(__file__).parent / "golden"
CONFIGS = FOLDER.parent.parent.parent / "configs"


def names() -> list[str]:
    """Configs by their path in configs/ without the suffix, e.g. "demo" or "methods/croma"."""
    paths = [p for folder in ("", "methods") for p in (CONFIGS / folder).glob("*.py") if p.stem != "__init__"]
    return sorted(p.relative_to(CONFIGS).with_suffix("").as_posix() for p in paths)


def content(name: str) -> dict[str, Any]:
    """What the golden file of a config must hold. `null` marks a key of the default that the config lacks."""
    values, default = _flat(name), _flat("default")
    if name == "default":
        return default
    return {k: values.get(k) for k in sorted({*values, *default}) if values.get(k) != default.get(k)}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str) -> None:
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content(name), indent=1, sort_keys=True) + "\n")


def _flat(name: str) -> dict[str, Any]:
    def leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                yield from leaves(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, value

    return dict(leaves("", config.to_json(config.load_file(str(CONFIGS / f"{name}.py")))))
