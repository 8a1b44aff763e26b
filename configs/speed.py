"""What `fusionx bench train` measures: the default network at the demo's size, as ViT-S, as ViT-B for accelerators.

Run: `fusionx bench train` (demo and small); on a GPU or TPU `fusionx bench train --config=configs/speed.py:base`.
Cost: three minutes on two CPU cores, as long again with `--peer=torch`.
Result: docs/speed.md.
"""

from ml_collections import ConfigDict

from configs import default

# Network, patch and tile in pixels, share of the patches hidden, batch, dtype.
CASES = {
    "demo": ("mini", 8, 64, 0.8, 32, "float32"),
    "small": ("small", 16, 128, 0.75, 32, "float32"),
    "base": ("base", 8, 128, 0.75, 256, "bfloat16"),
}


def get_config(options: str = "") -> ConfigDict:
    """`options` is a name of CASES, small if none is given."""
    if (options or "small") not in CASES:
        raise ValueError(f"there is no case {options!r}; known are {', '.join(CASES)}")
    c = default.get_config()
    (
        c.model.size, c.model.patch_size, c.augment.crop, c.mask_ratio, c.batch_size, c.model.dtype,
    ) = CASES[options or "small"]  # fmt: skip
    return c
