"""A simulated Sentinel-1/2 world, honest about being one. Frozen: its version is hashed into every prepared set.

Each tile is a pure function of (seed, index): a land-cover map, a date, an atmosphere, a weather, and from them one
Sentinel-2 L2A image (12 bands, reflectance x 10^4) and one Sentinel-1 image (VV, VH, gamma0 in dB), as a person
would get for one place and week. It is made of textbook ingredients, not fitted to any real scene; numbers won here say
how methods compare under known difficulties, nothing about real land.

What separates the twelve classes (each line names who can tell them apart):

- conifer_forest / broadleaf_forest: optical only (same backscatter law).
- flooded_forest / broadleaf_forest: SAR only (double bounce under an unchanged canopy).
- orchard / open_woodland: texture only (the same trees and grass in rows or at random).
- paddy: both together. Its spectrum follows cropland's law, its backscatter wetland's.
- wetland / grassland: SAR mostly (similar greenness, wetter and brighter in VV).
- cropland / grassland / bare_soil: phenology; a bare field may be cropland out of season, told by row direction in SAR.
- water: dark in SAR unless wind roughens it, dark in optical unless turbid.
- urban: bright points in SAR, heterogeneous in optical.

Clouds, their shadows and haze touch the optical tile only; speckle (gamma, 4.4 looks) the SAR tile only.

Sources of the ingredients: spectral shapes after the USGS spectral library's typical vegetation, soil and water curves
read at the Sentinel-2 band centers; backscatter levels after Ulaby & Dobson, "Handbook of Radar Scattering
Statistics for Terrain" (1989), C band at 35-40 degrees; 4.4 equivalent looks, Sentinel-1 Product Specification.
"""

import dataclasses
import functools
import hashlib
import inspect
import sys

import numpy as np

CLASSES = (
    "water",
    "broadleaf_forest",
    "conifer_forest",
    "flooded_forest",
    "grassland",
    "wetland",
    "cropland",
    "paddy",
    "bare_soil",
    "open_woodland",
    "orchard",
    "urban",
)
(WATER, BROADLEAF, CONIFER, FLOODED, GRASS, WETLAND, CROP, PADDY, BARE, WOODLAND, ORCHARD, URBAN) = range(12)

# How common a class is among parcels: a long tail, as in real land-cover sets.
PRIOR = np.array([0.05, 0.18, 0.14, 0.03, 0.18, 0.03, 0.22, 0.035, 0.05, 0.04, 0.02, 0.025])

MULTI_LABEL_COVER = 0.05  # a class is a scene label from this share of the tile on
ENL = 4.4  # equivalent number of looks, Sentinel-1 IW GRDH

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
_SPECTRA = np.array([_MATERIALS[m] for m in _MATERIAL_NAMES])
(_LEAF, _NEEDLE, _DRY, _SOIL, _CLEAR, _TURBID, _CONCRETE, _ROOF, _ASPHALT) = range(9)
_CLOUD = np.array([0.62, 0.64, 0.66, 0.68, 0.70, 0.71, 0.72, 0.73, 0.73, 0.60, 0.46, 0.36])
_WAVELENGTH_UM = np.array([0.443, 0.492, 0.560, 0.665, 0.704, 0.740, 0.783, 0.833, 0.865, 0.945, 1.614, 2.202])
_COARSE = {20: (4, 5, 6, 8, 10, 11), 60: (0, 9)}  # band positions by native pixel size, meters


@dataclasses.dataclass(frozen=True)
class Tile:
    """One simulated place. s1 [H, W, 2] dB, s2 [H, W, 12] reflectance x 10^4, pixels [H, W] class index."""

    s1: np.ndarray
    s2: np.ndarray
    pixels: np.ndarray


def version() -> str:
    """Hash of this module's source: any change to the world changes it."""
    source = inspect.getsource(sys.modules[__name__])
    return hashlib.sha256(source.encode()).hexdigest()[:16]


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


def _field(rng: np.random.Generator, size: int, slope: float, cutoff: float = 0.0) -> np.ndarray:
    """A random field [size, size] with power spectrum 1/f^slope, zero mean and unit deviation."""
    amplitude = _amplitude(size, slope, cutoff)
    noise = rng.standard_normal((2, size, size // 2 + 1))
    field = np.fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), s=(size, size))
    return (field - field.mean()) / max(field.std(), 1e-9)


def _parcels(rng: np.random.Generator, yx: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Parcel numbers [H, W]: nearest of random sites in a rotated, stretched and slightly warped metric."""
    count = int(rng.integers(3, 15))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 2.5)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    warp = np.stack([_field(rng, size, 3.0), _field(rng, size, 3.0)]) * rng.uniform(0.0, 2.5)
    metric = np.diag([1.0, stretch]) @ rotation
    points = np.tensordot(metric, yx + warp, axes=1)
    sites = metric @ (rng.uniform(0, size, (2, count)))
    distance = ((points[:, None] - sites[:, :, None, None]) ** 2).sum(0)
    return distance.argmin(0), count


def _land_cover(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Class map and parcel map [H, W] of one place."""
    yx = np.stack(np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float), indexing="ij"))
    parcel, count = _parcels(rng, yx, size)
    # A place favors a few classes: a Dirichlet draw around the long-tailed prior.
    mix = rng.dirichlet(PRIOR * 3.0)
    classes = rng.choice(len(CLASSES), size=count, p=mix)
    cover = classes[parcel]
    if rng.random() < 0.30:  # woods that follow the terrain, not the parcels
        wood = rng.choice([BROADLEAF, CONIFER, FLOODED, WOODLAND], p=[0.45, 0.33, 0.10, 0.12])
        cover = np.where(_field(rng, size, 3.2) > rng.uniform(0.3, 1.6), wood, cover)
    if rng.random() < 0.14:  # a town
        center = rng.uniform(0, size, 2)
        reach = np.hypot(yx[0] - center[0], yx[1] - center[1]) / rng.uniform(0.10, 0.35) / size
        cover = np.where(reach + 0.25 * _field(rng, size, 2.5) < 1.0, URBAN, cover)
    if rng.random() < 0.12:  # a lake
        center = rng.uniform(0, size, 2)
        reach = np.hypot(yx[0] - center[0], yx[1] - center[1]) / rng.uniform(0.08, 0.35) / size
        cover = np.where(reach + 0.2 * _field(rng, size, 3.0) < 1.0, WATER, cover)
    if rng.random() < 0.16:  # a river, sometimes with wet banks
        angle = rng.uniform(0, np.pi)
        along = np.cos(angle) * yx[1] + np.sin(angle) * yx[0]
        across = -np.sin(angle) * yx[1] + np.cos(angle) * yx[0]
        across = across - across.mean() - rng.uniform(-0.3, 0.3) * size
        bend = rng.uniform(2, 8) * np.sin(along / size * rng.uniform(3, 9) + rng.uniform(0, 6.3))
        width = rng.uniform(1.2, 4.0)
        distance = np.abs(across - bend)
        if rng.random() < 0.35:
            bank = rng.choice([WETLAND, FLOODED, PADDY])
            cover = np.where(distance < width + rng.uniform(2, 7), bank, cover)
        cover = np.where(distance < width, WATER, cover)
    return cover.astype(np.int64), parcel


def _rows(yx: np.ndarray, angle: np.ndarray, period: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """A stripe pattern in -1..1 with per-pixel direction, period (pixels) and phase."""
    along = np.cos(angle) * yx[1] + np.sin(angle) * yx[0]
    return np.cos(2 * np.pi * along / period + phase)


def _coarsen(image: np.ndarray, factor: int) -> np.ndarray:
    """Averages [H, W, C] over factor x factor blocks and repeats them back, as a coarser band on the 10 m grid."""
    h, w, c = image.shape
    ph, pw = -h % factor, -w % factor
    padded = np.pad(image, ((0, ph), (0, pw), (0, 0)), mode="edge")
    blocks = padded.reshape((h + ph) // factor, factor, (w + pw) // factor, factor, c).mean((1, 3))
    return blocks.repeat(factor, 0).repeat(factor, 1)[:h, :w]


def _blur(image: np.ndarray) -> np.ndarray:
    """3x3 binomial blur of [H, W, ...]: the sensor's point spread."""
    p = np.pad(image, [(1, 1), (1, 1)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def simulate(seed: int, index: int, size: int = 64) -> Tile:
    """The tile number `index` of the world `seed`: a pure function of its arguments."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    yx = np.stack(np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float), indexing="ij"))
    cover, parcel = _land_cover(rng, size)
    count = int(parcel.max()) + 1

    # What the two sensors share: date, weather, terrain, vigour, moisture, and the trees of woodland and orchard.
    season = rng.random()  # 0 mid-winter, 0.5 mid-summer
    summer = 0.5 - 0.5 * np.cos(2 * np.pi * season)
    relief = _field(rng, size, 3.6) * rng.uniform(0.0, 0.7)
    slope_x = np.gradient(relief, axis=1) * 6.0
    vigour = 0.10 * _field(rng, size, 2.2) + rng.normal(0, 0.12, count)[parcel] + rng.normal(0, 0.06)
    moisture = np.clip(
        rng.uniform(0.15, 0.75) + 0.08 * _field(rng, size, 2.6) + rng.normal(0, 0.06, count)[parcel], 0, 1
    )
    row_angle = rng.uniform(0, np.pi, count)[parcel]
    fine = _field(rng, size, 0.8, cutoff=0.35)
    row_period = rng.uniform(3.2, 5.5, count)[parcel]
    row_phase = rng.uniform(0, 6.3, count)[parcel]
    rows = _rows(yx, row_angle, row_period, row_phase)
    # Trees on grass, the same share in both: in rows for the orchard, at random for the woodland.
    tree_share = np.clip(rng.normal(0.48, 0.08, count)[parcel], 0.25, 0.7)
    trees = np.where(cover == ORCHARD, 0.5 + 0.5 * rows + 0.12 * fine, 0.5 + 0.36 * fine)
    trees = np.clip(trees - 0.5 + tree_share, 0, 1)

    # Greenness by class over the year; a crop's peak depends on the parcel.
    peak = rng.choice([0.38, 0.58], size=count, p=[0.5, 0.5])[parcel] + rng.normal(0, 0.03, count)[parcel]
    crop_green = np.exp(-(((season - peak + 0.5) % 1.0 - 0.5) ** 2) / (2 * 0.11**2))
    green = np.zeros((size, size))
    green_of = {
        BROADLEAF: 0.30 + 0.65 * summer,
        FLOODED: 0.30 + 0.65 * summer,
        CONIFER: 0.88,
        GRASS: 0.35 + 0.42 * summer,
        WETLAND: 0.30 + 0.45 * summer,
        BARE: 0.07,
        URBAN: 0.18,
        WOODLAND: 0.0,
        ORCHARD: 0.0,
    }
    for cls, value in green_of.items():
        green[cover == cls] = value
    seasonal = (cover == CROP) | (cover == PADDY)
    green[seasonal] = 0.08 + 0.85 * crop_green[seasonal]
    treed = (cover == WOODLAND) | (cover == ORCHARD)
    wooded = trees * (0.32 + 0.6 * summer) + (1 - trees) * (0.30 + 0.38 * summer)
    green[treed] = wooded[treed]
    green = np.where(cover == WATER, 0.0, np.clip(green + vigour * (green > 0.02), 0.02, 1.0))

    s2 = _optical(rng, size, cover, green, trees, rows, fine, moisture, summer, slope_x, parcel, count)
    s1 = _radar(rng, size, cover, green, trees, rows, fine, moisture, slope_x, row_angle, parcel, count)
    return Tile(s1=s1, s2=s2, pixels=cover.astype(np.uint8))


def _optical(rng, size, cover, green, trees, rows, fine, moisture, summer, slope_x, parcel, count) -> np.ndarray:
    """Sentinel-2 L2A [H, W, 12]: materials mixed by greenness, then light, haze, clouds, sensor."""
    share = np.zeros((size, size, len(_MATERIAL_NAMES)))
    share[..., _LEAF] = green
    dry = np.clip(0.55 * (1 - summer) + 0.2, 0, 1) * (1 - green)
    share[..., _DRY] = dry
    share[..., _SOIL] = 1 - green - dry
    conifer = cover == CONIFER
    share[conifer, _NEEDLE], share[conifer, _LEAF] = green[conifer], 0.0
    soil_like = (cover == BARE) | (cover == CROP) | (cover == PADDY)
    share[soil_like, _SOIL] = 1 - green[soil_like]
    share[soil_like, _DRY] = 0.0
    # Stubble: some bare fields carry dry residue, so that soil alone does not say "bare".
    residue = (rng.random(count) < 0.35)[parcel] & soil_like
    share[residue, _DRY] = 0.5 * share[residue, _SOIL]
    share[residue, _SOIL] *= 0.5
    water = cover == WATER
    turbid = float(rng.beta(1.0, 1.6))
    share[water] = 0.0
    share[water, _CLEAR], share[water, _TURBID] = 1 - turbid, turbid
    wet = cover == WETLAND
    open_water = np.clip(0.10 + 0.10 * fine, 0, 0.4)
    share[wet] *= (1 - open_water[wet])[:, None]
    share[wet, _CLEAR] += open_water[wet]
    town = cover == URBAN
    built = np.abs(_field(rng, size, 1.0)) + rng.uniform(0, 0.5)
    kinds = rng.dirichlet([2.0, 2.0, 2.5])
    tone = np.argsort(np.argsort(_field(rng, size, 0.5)[town])) / max(town.sum(), 1)
    share[town] *= np.clip(1.1 - built[town], 0.1, 1.0)[:, None]
    left = 1 - share[town].sum(-1)
    edges = np.cumsum(kinds)
    for i, material in enumerate((_CONCRETE, _ROOF, _ASPHALT)):
        inside = (tone <= edges[i]) & (tone > (edges[i - 1] if i else -1))
        share[np.flatnonzero(town) // size, np.flatnonzero(town) % size, material] += left * inside

    reflectance = share @ _SPECTRA
    # Soil brightness varies by place and parcel; wet soil is darker, most of all in the short-wave infrared.
    bright = np.exp(rng.normal(0, 0.18) + rng.normal(0, 0.12, count)[parcel])
    bare = share[..., _SOIL] + share[..., _DRY]
    darkening = 1 - 0.45 * moisture[..., None] * (0.6 + 0.4 * (_WAVELENGTH_UM > 1.2))
    reflectance *= 1 + bare[..., None] * (bright[..., None] * darkening - 1)
    leaf_water = rng.normal(0, 0.10, count)[parcel]
    reflectance[..., 10:] *= (1 - 0.5 * green * leaf_water)[..., None]
    reflectance *= 1 + 0.05 * _field(rng, size, 1.0)[..., None] + 0.03 * rng.standard_normal((size, size, 1))
    # Light: terrain, a gain per scene and per band (calibration, view angle).
    reflectance *= np.clip(1 + 0.5 * slope_x * rng.choice([-1, 1]), 0.4, 1.7)[..., None]
    reflectance *= np.exp(rng.normal(0, 0.08) + rng.normal(0, 0.02, 12))
    # Haze adds most at short wavelengths and takes contrast away.
    haze = rng.exponential(0.018) * np.clip(1 + 0.4 * _field(rng, size, 3.0), 0, 3)[..., None]
    scatter = (_WAVELENGTH_UM / 0.49) ** -2.0
    reflectance = reflectance * np.exp(-1.5 * haze * scatter) + haze * scatter
    if rng.random() < 0.35:  # clouds hide part of the optical tile; their shadows darken another part
        thickness = _field(rng, size, 3.0)
        opacity = 1 / (1 + np.exp(-5 * (thickness - rng.uniform(0.2, 2.0))))
        shift = tuple(int(v) for v in rng.integers(-14, 15, 2))
        shadow = np.roll(opacity, shift, axis=(0, 1))
        reflectance *= (1 - 0.55 * shadow)[..., None]
        tops = _CLOUD * (0.85 + 0.15 * _field(rng, size, 2.0)[..., None])
        reflectance = reflectance * (1 - opacity[..., None]) + tops * opacity[..., None]
    reflectance = _blur(reflectance)
    for meters, bands in _COARSE.items():
        reflectance[..., bands] = _coarsen(reflectance[..., bands], meters // 10)
    reflectance += rng.normal(0, 0.0025, reflectance.shape)
    return np.clip(np.rint(reflectance * 1e4), 1, 20000)


def _radar(rng, size, cover, green, trees, rows, fine, moisture, slope_x, row_angle, parcel, count) -> np.ndarray:
    """Sentinel-1 RTC [H, W, 2] in dB: class laws, moisture, rows, wind, urban points, terrain residue, speckle."""
    vv = np.zeros((size, size))
    vh = np.zeros((size, size))
    soil_vv = -15.0 + 7.0 * moisture + rng.normal(0, 1.0, count)[parcel]
    soil_vh = soil_vv - 8.5 + rng.normal(0, 0.6, count)[parcel]

    def law(classes, vv_value, vh_value):
        where = np.isin(cover, classes)
        vv[where] = np.broadcast_to(vv_value, cover.shape)[where]
        vh[where] = np.broadcast_to(vh_value, cover.shape)[where]

    forest = rng.normal(0, 0.4)
    law([BROADLEAF, CONIFER], -9.2 + forest + 1.0 * (green - 0.7), -14.8 + forest + 1.0 * (green - 0.7))
    law([FLOODED], -6.4 + forest, -13.6 + forest)
    law([GRASS], -13.2 + 3.0 * (moisture - 0.45) + 1.5 * green, -20.2 + 2.0 * (moisture - 0.45) + 2.5 * green)
    bounce = rng.normal(0, 0.8, count)[parcel]
    law([WETLAND, PADDY], -9.6 + bounce, -17.6 + 0.6 * bounce)
    cover_fraction = np.clip(green, 0, 1)
    crop_vv = soil_vv * (1 - 0.6 * cover_fraction) + 0.6 * cover_fraction * -10.8
    crop_vh = soil_vh * (1 - 0.75 * cover_fraction) + 0.75 * cover_fraction * -16.8
    # Ploughed rows facing the radar look rougher: bare crop fields depend on direction, bare soil does not.
    facing = np.abs(np.cos(row_angle)) ** 4
    law([CROP], crop_vv + 3.2 * facing * (1 - cover_fraction), crop_vh + 1.6 * facing * (1 - cover_fraction))
    law([BARE], soil_vv - 0.8, soil_vh - 0.8)
    law(
        [WOODLAND, ORCHARD],
        10 * np.log10(trees * 10**-0.93 + (1 - trees) * 10**-1.27),
        10 * np.log10(trees * 10**-1.49 + (1 - trees) * 10**-1.93),
    )
    wind = rng.gamma(2.0, 2.2)  # m/s
    water_vv = -26.0 + 11.0 * np.log10(1 + wind) + 0.5 * _field(rng, size, 2.0)
    law([WATER], water_vv, -29.5 + 3.0 * np.log10(1 + wind))
    town = cover == URBAN
    points = rng.standard_normal((size, size)) ** 2 * rng.uniform(1.0, 3.2)
    vv[town] = -9.0 + points[town] + 1.5 * np.abs(fine[town])
    vh[town] = -16.5 + 0.9 * points[town] + 1.5 * np.abs(fine[town])

    texture = {BROADLEAF: 0.6, CONIFER: 0.6, FLOODED: 0.6, CROP: 0.3, GRASS: 0.3, WETLAND: 0.5, PADDY: 0.5}
    strength = np.zeros(len(CLASSES))
    for cls, value in texture.items():
        strength[cls] = value
    rough = strength[cover] * _field(rng, size, 0.8)
    gain = rng.normal(0, 0.35, 2)  # calibration and incidence angle, per scene
    tilt = (_range_ramp(size) * rng.uniform(-0.4, 0.4)) - 3.0 * slope_x
    speckle = rng.gamma(ENL, 1 / ENL, (size, size, 2))
    power = _blur(10 ** ((np.stack([vv, vh], -1) + rough[..., None]) / 10))
    noise_floor = 10**-2.7
    out = 10 * np.log10(np.maximum(power * speckle + noise_floor * rng.gamma(ENL, 1 / ENL, power.shape) * 0.25, 1e-6))
    return out + gain + tilt[..., None]


def _range_ramp(size: int) -> np.ndarray:
    """A range ramp [size, size] from -1 to 1 across the swath direction."""
    return np.broadcast_to(np.linspace(-1, 1, size), (size, size))
