"""Rewrites the golden config files after a deliberate change: `python -m tests.configs.golden`."""

import json
from pathlib import Path

from fusionx_jax import config

HERE = Path(__file__).parent
for path in sorted((HERE.parent.parent.parent / "configs").glob("*.py")):
    if path.stem != "__init__":
        golden = config.to_json(config.load_file(str(path)))
        (HERE / f"{path.stem}.json").write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
