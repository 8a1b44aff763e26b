"""The simulated Sentinel-2 image: materials mixed by greenness, then light, haze, clouds and the sensor."""

import numpy as np

from data.simulated.classes import BARE, CONIFER, CROP, PADDY, URBAN, WATER, WETLAND
from data.simulated.fields import blur, coarsen, field
from data.simulated.place import Place

# Reflectance (x 1) of pure materials at B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12.
_MATERIALS = {
    "leaf": (0.022, 0.028, 0.060, 0.032, 0.085, 0.260, 0.345, 0.370, 0.385, 0.390, 0.190, 0.090),
    "needle": (0.018, 0.022, 0.042, 0.028, 0.060, 0.165, 0.205, 0.220, 0.232, 0.235, 0.105, 0.048),
    "dry": (0.060, 0.075, 0.110, 0.150, 0.185, 0.215, 0.235, 0.255, 0.270, 0.280, 0.330, 0.240),
    "soil": (0.070, 0.085, 0.120, 0.165, 0.185, 0.200, 0.215, 0.230, 0.245, 0.255, 0.320, 0.270),
    "clear_water": (0.030, 0.030, 0.026, 0.014, 0.012, 0.010, 0.009, 0.008, 0.007, 0.007, 0.004, 0.003),
    "turbid_water": (0.055, 0.068, 0.098, 0.092, 0.085, 0.050, 0.045, 0.034, 0.026, 0.022, 0.008, 0.005),
    "concrete": (0.140, 0.160, 0.185, 0.205, 0.215, 0.225, 0.235, 0.245, 0.250, 0.255, 0.275, 0.255),
    "roof": (0.060, 0.070, 0.090, 0.160, 0.190, 0.205, 0.220, 0.235, 0.245, 0.250, 0.300, 0.280),
    "asphalt": (0.060, 0.065, 0.072, 0.078, 0.082, 0.085, 0.088, 0.090, 0.092, 0.094, 0.105, 0.100),
}
_MATERIAL_NAMES = tuple(_MATERIALS)
SPECTRA = np.array([_MATERIALS[m] for m in _MATERIAL_NAMES])
(_LEAF, _NEEDLE, _DRY, _SOIL, _CLEAR, _TURBID, _CONCRETE, _ROOF, _ASPHALT) = range(9)
_CLOUD = np.array([0.62, 0.64, 0.66, 0.68, 0.70, 0.71, 0.72, 0.73, 0.73, 0.60, 0.46, 0.36])
_WAVELENGTH_UM = np.array([0.443, 0.492, 0.560, 0.665, 0.704, 0.740, 0.783, 0.833, 0.865, 0.945, 1.614, 2.202])
_COARSE = {20: (4, 5, 6, 8, 10, 11), 60: (0, 9)}  # band positions by native pixel size, meters


def image(rng: np.random.Generator, place: Place) -> np.ndarray:
    """Sentinel-2 L2A [H, W, 12], reflectance x 10^4. The order of the draws is part of the world."""
    share = _vegetation(place)
    _add_residue(rng, place, share)
    _add_water(rng, place, share)
    _add_town(rng, place, share)
    reflectance = share @ SPECTRA
    _vary_soil_and_leaves(rng, place, share, reflectance)
    # Light: terrain, a gain per scene and per band (calibration, view angle).
    reflectance *= np.clip(1 + 0.5 * place.slope_x * rng.choice([-1, 1]), 0.4, 1.7)[..., None]
    reflectance *= np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.02, 12))
    # Haze adds most at short wavelengths and takes contrast away.
    haze = rng.exponential(0.018) * np.clip(1 + 0.4 * field(rng, place.size, 3.0), 0, 3)[..., None]
    scatter = (_WAVELENGTH_UM / 0.49) ** -2.0
    reflectance = reflectance * np.exp(-1.5 * haze * scatter) + haze * scatter
    if rng.random() < 0.35:
        reflectance = _add_clouds(rng, place.size, reflectance)
    reflectance = blur(reflectance)
    for meters, bands in _COARSE.items():
        reflectance[..., bands] = coarsen(reflectance[..., bands], meters // 10)
    reflectance += rng.normal(0, 0.0025, reflectance.shape)
    return np.clip(np.rint(reflectance * 1e4), 1, 20000)


def _vegetation(place: Place) -> np.ndarray:
    """Shares [H, W, materials] of leaves, needles, dry matter and soil by greenness."""
    cover, green = place.cover, place.green
    share = np.zeros((place.size, place.size, len(_MATERIAL_NAMES)))
    share[..., _LEAF] = green
    dry = np.clip(0.55 * (1 - place.summer) + 0.2, 0, 1) * (1 - green)
    share[..., _DRY] = dry
    share[..., _SOIL] = 1 - green - dry
    conifer = cover == CONIFER
    share[conifer, _NEEDLE], share[conifer, _LEAF] = green[conifer], 0.0
    soil_like = _is_soil_like(cover)
    share[soil_like, _SOIL] = 1 - green[soil_like]
    share[soil_like, _DRY] = 0.0
    return share


def _is_soil_like(cover: np.ndarray) -> np.ndarray:
    return (cover == BARE) | (cover == CROP) | (cover == PADDY)


def _add_residue(rng: np.random.Generator, place: Place, share: np.ndarray) -> None:
    """Stubble: some bare fields carry dry residue, so that soil alone does not say "bare"."""
    residue = place.by_parcel(rng.random(place.count) < 0.35) & _is_soil_like(place.cover)
    share[residue, _DRY] = 0.5 * share[residue, _SOIL]
    share[residue, _SOIL] *= 0.5


def _add_water(rng: np.random.Generator, place: Place, share: np.ndarray) -> None:
    """Clear and turbid water, and open water in wetlands."""
    water = place.cover == WATER
    turbid = float(rng.beta(1.0, 1.6))
    share[water] = 0.0
    share[water, _CLEAR], share[water, _TURBID] = 1 - turbid, turbid
    wet = place.cover == WETLAND
    open_water = np.clip(0.10 + 0.10 * place.fine, 0, 0.4)
    share[wet] *= (1 - open_water[wet])[:, None]
    share[wet, _CLEAR] += open_water[wet]


def _add_town(rng: np.random.Generator, place: Place, share: np.ndarray) -> None:
    """Concrete, roofs and asphalt in patches, with gardens between them."""
    size, town = place.size, place.cover == URBAN
    built = np.abs(field(rng, size, 1.0)) + rng.uniform(0, 0.5)
    kinds = rng.dirichlet([2.0, 2.0, 2.5])
    tone = np.argsort(np.argsort(field(rng, size, 0.5)[town])) / max(town.sum(), 1)
    share[town] *= np.clip(1.1 - built[town], 0.1, 1.0)[:, None]
    left = 1 - share[town].sum(-1)
    edges = np.cumsum(kinds)
    for i, material in enumerate((_CONCRETE, _ROOF, _ASPHALT)):
        inside = (tone <= edges[i]) & (tone > (edges[i - 1] if i else -1))
        share[np.flatnonzero(town) // size, np.flatnonzero(town) % size, material] += left * inside


def _vary_soil_and_leaves(rng: np.random.Generator, place: Place, share: np.ndarray, reflectance: np.ndarray) -> None:
    """Soil brightness varies by place and parcel; wet soil is darker, most of all in the short-wave infrared."""
    bright = np.exp(rng.normal(0, 0.18) + place.by_parcel(rng.normal(0, 0.12, place.count)))
    bare = share[..., _SOIL] + share[..., _DRY]
    darkening = 1 - 0.45 * place.moisture[..., None] * (0.6 + 0.4 * (_WAVELENGTH_UM > 1.2))
    reflectance *= 1 + bare[..., None] * (bright[..., None] * darkening - 1)
    leaf_water = place.by_parcel(rng.normal(0, 0.10, place.count))
    reflectance[..., 10:] *= (1 - 0.5 * place.green * leaf_water)[..., None]
    size = place.size
    reflectance *= 1 + 0.05 * field(rng, size, 1.0)[..., None] + 0.03 * rng.standard_normal((size, size, 1))


def _add_clouds(rng: np.random.Generator, size: int, reflectance: np.ndarray) -> np.ndarray:
    """Clouds hide part of the tile; their shadows darken another part."""
    thickness = field(rng, size, 3.0)
    opacity = 1 / (1 + np.exp(-5 * (thickness - rng.uniform(0.2, 2.0))))
    shift = tuple(int(v) for v in rng.integers(-14, 15, 2))
    shadow = np.roll(opacity, shift, axis=(0, 1))
    reflectance *= (1 - 0.55 * shadow)[..., None]
    tops = _CLOUD * (0.85 + 0.15 * field(rng, size, 2.0)[..., None])
    return reflectance * (1 - opacity[..., None]) + tops * opacity[..., None]
