"""Random fields, row patterns and the sensor's resolution: the building blocks of a simulated tile."""

import functools

import numpy as np


@functools.cache
def _amplitude(size: int, slope: float, cutoff: float) -> np.ndarray:
    """Half-plane amplitudes [size, size // 2 + 1] of a 1/f^slope power spectrum without its mean."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    f = np.hypot(fy, fx)
    f[0, 0] = 1.0
    amplitude = f ** (-slope / 2)
    amplitude[0, 0] = 0.0
    return amplitude * np.exp(-((f / cutoff) ** 2)) if cutoff else amplitude


def field(rng: np.random.Generator, size: int, slope: float, cutoff: float = 0.0) -> np.ndarray:
    """A random field [size, size] with power spectrum 1/f^slope, zero mean and unit deviation."""
    amplitude = _amplitude(size, slope, cutoff)
    noise = rng.standard_normal((2, size, size // 2 + 1))
    values = np.fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), s=(size, size))
    return (values - values.mean()) / max(values.std(), 1e-9)


def row_pattern(yx: np.ndarray, angle: np.ndarray, period: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """A stripe pattern in -1..1 with per-pixel direction, period (pixels) and phase."""
    along = np.cos(angle) * yx[1] + np.sin(angle) * yx[0]
    return np.cos(2 * np.pi * along / period + phase)


def coarsen(image: np.ndarray, factor: int) -> np.ndarray:
    """Averages [H, W, C] over factor x factor blocks and repeats them back, as a coarser band on the 10 m grid."""
    h, w, c = image.shape
    ph, pw = -h % factor, -w % factor
    padded = np.pad(image, ((0, ph), (0, pw), (0, 0)), mode="edge")
    blocks = padded.reshape((h + ph) // factor, factor, (w + pw) // factor, factor, c).mean((1, 3))
    return blocks.repeat(factor, 0).repeat(factor, 1)[:h, :w]


def blur(image: np.ndarray) -> np.ndarray:
    """3x3 binomial blur of [H, W, ...]: the sensor's point spread."""
    p = np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def grid(size: int) -> np.ndarray:
    """Row and column of each pixel, float [2, size, size]."""
    axis = np.arange(size, dtype=float)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"))
