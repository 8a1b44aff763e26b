"""FusionX-Net in JAX. `load(path)` gives the encoder of a checkpoint, ready to use."""

from fusionx_jax.types import Untyped

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Untyped:
    if name == "load":  # imported late: `import fusionx_jax` alone answers at once
        from fusionx_jax.encoder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
