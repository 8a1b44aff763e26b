"""CORINE Land Cover level 3, and the 19 classes that BigEarthNet makes of it.

Codes and names: CLC nomenclature, Copernicus Land Monitoring Service (the names are BigEarthNet v1's spelling). The 19
classes: Sumbul et al., "BigEarthNet-MM", IEEE GRSM 2021, table of the new nomenclature; 32 of the 43 names map to one,
11 are dropped. 335 (glaciers and perpetual snow) does not occur in BigEarthNet.
"""

from collections.abc import Iterable

CLASSES_19 = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)

# CLC code: (name in BigEarthNet v1, number in CLASSES_19 or None where dropped)
LEVEL_3: dict[int, tuple[str, int | None]] = {
    111: ("Continuous urban fabric", 0),
    112: ("Discontinuous urban fabric", 0),
    121: ("Industrial or commercial units", 1),
    122: ("Road and rail networks and associated land", None),
    123: ("Port areas", None),
    124: ("Airports", None),
    131: ("Mineral extraction sites", None),
    132: ("Dump sites", None),
    133: ("Construction sites", None),
    141: ("Green urban areas", None),
    142: ("Sport and leisure facilities", None),
    211: ("Non-irrigated arable land", 2),
    212: ("Permanently irrigated land", 2),
    213: ("Rice fields", 2),
    221: ("Vineyards", 3),
    222: ("Fruit trees and berry plantations", 3),
    223: ("Olive groves", 3),
    231: ("Pastures", 4),
    241: ("Annual crops associated with permanent crops", 3),
    242: ("Complex cultivation patterns", 5),
    243: ("Land principally occupied by agriculture, with significant areas of natural vegetation", 6),
    244: ("Agro-forestry areas", 7),
    311: ("Broad-leaved forest", 8),
    312: ("Coniferous forest", 9),
    313: ("Mixed forest", 10),
    321: ("Natural grassland", 11),
    322: ("Moors and heathland", 12),
    323: ("Sclerophyllous vegetation", 12),
    324: ("Transitional woodland/shrub", 13),
    331: ("Beaches, dunes, sands", 14),
    332: ("Bare rock", None),
    333: ("Sparsely vegetated areas", 11),
    334: ("Burnt areas", None),
    411: ("Inland marshes", 15),
    412: ("Peatbogs", 15),
    421: ("Salt marshes", 16),
    422: ("Salines", 16),
    423: ("Intertidal flats", None),
    511: ("Water courses", 17),
    512: ("Water bodies", 17),
    521: ("Coastal lagoons", 18),
    522: ("Estuaries", 18),
    523: ("Sea and ocean", 18),
}

CLASSES_43 = tuple(name for name, _ in LEVEL_3.values())
_TO_19 = dict(LEVEL_3.values())


def to_19(names: Iterable[str]) -> tuple[int, ...]:
    """Numbers in `CLASSES_19` of level-3 names, sorted, each once; dropped classes give none.

    Raises:
      KeyError: a name is not one of the 43.
    """
    return tuple(sorted({number for number in (_TO_19[n] for n in names) if number is not None}))
