"""Position codes of patches. NumPy alone: the network and its PyTorch twin share them."""

import numpy as np


def sincos_positions(height: int, width: int, dim: int) -> np.ndarray:
    """2-D sine-cosine position codes [height * width, dim] of a row-major grid; `dim` must be a multiple of 4."""
    if dim % 4:
        raise ValueError(f"The width {dim} must be a multiple of 4 for 2-D sine-cosine positions.")
    frequency = 1.0 / 10000 ** (np.arange(dim // 4) / (dim // 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    parts = [f(axis.reshape(-1, 1) * frequency) for axis in (columns, rows) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
