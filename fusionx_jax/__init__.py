"""FusionX-Net in JAX. `load(path)` gives the encoder of a checkpoint, ready to use."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported late: `import fusionx_jax` alone answers at once
        from fusionx_jax.encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
