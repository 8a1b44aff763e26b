"""Cases of `fusionx bench train`: the default network at the size of the demo, of ViT-S, and of ViT-B for accelerators.

Run: `fusionx bench train` (demo and small); on a GPU or TPU `fusionx bench train --config=configs/speed.py:base`.
Cost: three minutes on two CPU cores, six with `--peer=torch`.
Result: docs/speed.md.
"""

from ml_collections import ConfigDict

from configs import default

# model.size, model.patch_size (pixels), augment.crop (pixels), mask_ratio, batch_size, model.dtype.
CASES = {
    "demo": ("mini", 8, 64, 0.8, 32, "float32"),
    "small": ("small", 16, 128, 0.75, 32, "float32"),
    "base": ("base", 8, 128, 0.75, 256, "bfloat16"),
}


def get_config(options: str = "") -> ConfigDict:
    """`options` is a key of CASES; by default "small"."""
    if (options or "small") not in CASES:
        raise ValueError(f"There is no case {options!r}; the known ones are {', '.join(CASES)}.")
    c = default.get_config()
    (
        c.model.size, c.model.patch_size, c.augment.crop, c.mask_ratio, c.batch_size, c.model.dtype,
    ) = CASES[options or "small"]  # fmt: skip
    return c
