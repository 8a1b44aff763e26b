"""What a sensor is: bands, unit, wire encoding, display. The only place in the library that knows a sensor by name.

A `Modality` is a frozen description. Tiles travel as uint16 ("wire") from the prepared set to the device, where
`physical = wire * scale + offset`; the code `NODATA` marks pixels without a measurement. Normalization
statistics are not here: they belong to a data set or a checkpoint and live in `contract.py`.

Sources
-------
Sentinel-2 bands: "Sentinel-2 MSI User Guide", ESA, spectral resolution tables (central wavelengths of S2A) and
"Sentinel-2 Products Specification Document" (S2-PDGS-TAS-DI-PSD), quantification value 10000, radiometric offset
-1000 from processing baseline 04.00. Sentinel-1: "Sentinel-1 Product Specification" (S1-RS-MDA-52-7441), IW mode,
C-band 5.405 GHz (5.55 cm), dual polarization VV+VH, 10 m pixel spacing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

NODATA = 65535
"""Wire code of a pixel without a measurement (also the Sentinel-2 specification's code for a saturated pixel)."""


@dataclasses.dataclass(frozen=True)
class Band:
    """One channel: its name in the product, central wavelength in nanometers, native pixel size in meters."""

    name: str
    wavelength_nm: float
    resolution_m: float


@dataclasses.dataclass(frozen=True)
class Composite:
    """How to draw a modality: three bands (or band differences) and the physical range each channel spans.

    `channels` entries are band names, or `"A-B"` for the difference of two bands in the modality's unit.
    """

    name: str
    channels: tuple[str, str, str]
    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Modality:
    """A sensor and processing level.

    Attributes:
      name: key of the modality in batches and result rows.
      bands: channels in wire order.
      unit: physical unit of decoded values: "dB" or "reflectance_1e4" (reflectance x 10^4).
      level: processing level; two levels of one sensor are different inputs.
      scale, offset: `physical = wire * scale + offset`.
      valid_range: what the wire can hold; physical values outside it are in another unit.
      composites: ways to draw it, the first being the usual one.
      nodata_codes: numbers that mean no data in the product's own integer files.
    """

    name: str
    bands: tuple[Band, ...]
    unit: str
    level: str
    scale: float
    offset: float
    valid_range: tuple[float, float]
    composites: tuple[Composite, ...] = ()
    nodata_codes: tuple[int, ...] = ()

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.bands)

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Physical values [..., C] (float, NaN where there is no data) to wire uint16; clips to the wire's range."""
        return encode(physical, self.scale, self.offset)

    def decode(self, wire: np.ndarray) -> np.ndarray:
        """Wire uint16 [..., C] to physical float32, NaN where there is no data."""
        return decode(wire, self.scale, self.offset)


def encode(physical: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """`wire = round((physical - offset) / scale)`, non-finite values become `NODATA`; clips to [0, 65534]."""
    wire = np.rint((np.asarray(physical, np.float64) - offset) / scale)
    return np.where(np.isfinite(wire), np.clip(wire, 0, NODATA - 1), NODATA).astype(np.uint16)


def decode(wire: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """`physical = wire * scale + offset` as float32, NaN where `wire == NODATA`."""
    wire = np.asarray(wire)
    return np.where(wire == NODATA, np.nan, wire.astype(np.float64) * scale + offset).astype(np.float32)


_C_BAND_NM = 5.55e7  # 5.405 GHz, Sentinel-1 Product Specification, section "Instrument"

_S1_BANDS = (Band("VV", _C_BAND_NM, 10.0), Band("VH", _C_BAND_NM, 10.0))

# Central wavelengths of Sentinel-2A (nm) and native pixel sizes (m), Sentinel-2 MSI User Guide.
_S2_ALL = (
    Band("B01", 442.7, 60.0),
    Band("B02", 492.4, 10.0),
    Band("B03", 559.8, 10.0),
    Band("B04", 664.6, 10.0),
    Band("B05", 704.1, 20.0),
    Band("B06", 740.5, 20.0),
    Band("B07", 782.8, 20.0),
    Band("B08", 832.8, 10.0),
    Band("B8A", 864.7, 20.0),
    Band("B09", 945.1, 60.0),
    Band("B10", 1373.5, 60.0),
    Band("B11", 1613.7, 20.0),
    Band("B12", 2202.4, 20.0),
)
_S2_L2A = tuple(b for b in _S2_ALL if b.name != "B10")  # the cirrus band has no surface reflectance

_SAR_COMPOSITES = (Composite("VV, VH, VV-VH", ("VV", "VH", "VV-VH"), (-20.0, -26.0, 2.0), (-2.0, -8.0, 14.0)),)
_OPTICAL_COMPOSITES = (
    Composite("true color", ("B04", "B03", "B02"), (0.0, 0.0, 0.0), (2600.0, 2600.0, 2600.0)),
    Composite("false color", ("B08", "B04", "B03"), (0.0, 0.0, 0.0), (5000.0, 2600.0, 2600.0)),
)


def _sentinel1(level: str) -> Modality:
    # 0.002 dB steps from -80 dB: reaches +51 dB, far beyond the brightest urban targets (+30 dB).
    return Modality("s1", _S1_BANDS, "dB", level, 0.002, -80.0, (-80.0, 51.0), _SAR_COMPOSITES)


def _sentinel2(level: str, bands: tuple[Band, ...]) -> Modality:
    # The offset keeps the slightly negative reflectances that baseline 04.00 introduced; every integer is exact.
    # 0 (no data) and 65535 (saturated): special values of the Products Specification Document.
    return Modality(
        "s2", bands, "reflectance_1e4", level, 1.0, -1000.0, (-1000.0, 64534.0), _OPTICAL_COMPOSITES, (0, NODATA)
    )


SENTINEL1_GRD = _sentinel1("GRD")
SENTINEL1_RTC = _sentinel1("RTC")
SENTINEL2_L2A = _sentinel2("L2A", _S2_L2A)
SENTINEL2_L1C = _sentinel2("L1C", _S2_ALL)

KNOWN: dict[str, Modality] = {
    "sentinel1_grd": SENTINEL1_GRD,
    "sentinel1_rtc": SENTINEL1_RTC,
    "sentinel2_l2a": SENTINEL2_L2A,
    "sentinel2_l1c": SENTINEL2_L1C,
}
"""Sensors by the name used in YAML and configs."""

ASSUMED: dict[str, Modality] = {m.name: m for m in (SENTINEL1_GRD, SENTINEL2_L2A)}
"""The sensor of a modality named in a config, where no data set describes it."""


def subset(modality: Modality, bands: Sequence[str]) -> Modality:
    """The same sensor with only `bands`, in that order.

    Raises:
      KeyError: a band is not one of the modality's, named in the message.
    """
    by_name = {b.name: b for b in modality.bands}
    missing = [b for b in bands if b not in by_name]
    if missing:
        raise KeyError(
            f"{modality.name} ({modality.level}) has no band {', '.join(missing)}; it has {', '.join(by_name)}"
        )
    kept = tuple(by_name[b] for b in bands)
    drawable = tuple(c for c in modality.composites if all(p in bands for ch in c.channels for p in ch.split("-")))
    return dataclasses.replace(modality, bands=kept, composites=drawable)


def compose(physical: np.ndarray, band_names: Sequence[str], composites: Sequence[Composite]) -> np.ndarray:
    """Draws a tile: physical [H, W, C] to RGB float [H, W, 3] in 0..1, no-data pixels mid-gray.

    Uses the first composite whose bands are present; a modality without one is drawn from its first bands,
    stretched between the 2nd and 98th percentile.
    """
    index = {b: i for i, b in enumerate(band_names)}
    for composite in composites:
        parts = [ch.split("-") for ch in composite.channels]
        if all(p in index for pair in parts for p in pair):
            planes = [physical[..., index[p[0]]] - (physical[..., index[p[1]]] if len(p) > 1 else 0.0) for p in parts]
            low, high = np.array(composite.low), np.array(composite.high)
            break
    else:
        planes = [physical[..., min(i, len(band_names) - 1)] for i in range(3)]
        finite = [p[np.isfinite(p)] for p in planes]
        low = np.array([np.percentile(p, 2) if p.size else 0.0 for p in finite])
        high = np.array([np.percentile(p, 98) if p.size else 1.0 for p in finite])
    rgb = (np.stack(planes, -1) - low) / np.maximum(high - low, 1e-6)
    return np.where(np.isfinite(rgb), np.clip(rgb, 0.0, 1.0), 0.5)


_DARK_BANDS = ("B04", "B05", "B11", "B12")  # water and forest are dark in them
_BASELINE_OFFSET = 1000.0  # DN; Sentinel-2 products since processing baseline 04.00 (25 January 2022)


def offset_remark(values: np.ndarray, bands: Sequence[str]) -> str | None:
    """A remark if the offset of reflectance x 10^4 [N, C] seems forgotten, or subtracted without need; else None.

    Water, shadow and dense forest bring the darkest pixels of the red and short-wave bands close to zero; with the
    offset of -1000 not yet applied, nothing lies below 1000. Applied twice or without need, a good part is negative.
    """
    dark = [i for i, b in enumerate(bands) if b in _DARK_BANDS]
    finite = values[np.isfinite(values).all(-1)][:, dark]
    if not dark or len(finite) < 100:
        return None
    lowest = float(np.percentile(finite, 0.5, axis=0).min())
    negative = float((finite < 0).mean())
    if lowest >= _BASELINE_OFFSET:
        return (
            f"the darkest pixels lie at {lowest:.0f}, above 1000: the offset of processing baseline 04.00 (since 2022) "
            "seems not to be subtracted; check the products' metadata, and if they have it pass --s2_offset=-1000 "
            "(`add: -1000` in a YAML)."
        )
    if negative > 0.2:
        return (
            f"{100 * negative:.0f} % of the red and short-wave pixels are negative: an offset seems to be subtracted "
            "that these products do not have; check --s2_offset (`add:` in a YAML)."
        )
    return None
