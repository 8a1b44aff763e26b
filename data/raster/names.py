"""Band names as files spell them: "B8A", "B08A", "b8a", "Band 8A", "vv", "Sigma0_VV_db"."""

import re
from collections.abc import Sequence

# Words beside a band's name: products, calibration and unit.
_WORDS = {"band", "sigma0", "gamma0", "beta0", "sigma", "gamma", "beta", "nought", "db", "linear", "reflectance", "sr"}


def find(written: str, names: Sequence[str]) -> str | None:
    """The one of `names` that a file's spelling means; None if it means none of them, or several."""
    exact = [n for n in names if n.casefold() == written.strip().casefold()]
    if exact:
        return exact[0]
    words = [w for w in re.split(r"[^a-z0-9]+", written.casefold()) if w]
    rest = {_key(w) for w in words if w not in _WORDS}
    found = [n for n in names if _key(n.casefold()) in rest]
    return found[0] if len(found) == 1 and len(rest) == 1 else None


def _key(word: str) -> str:
    """A name without the prefix B and leading zeros: "b08a" and "8a" give "8a"."""
    match = re.fullmatch(r"b?0*(\d{1,2}a?)", word)
    return match[1] if match else word
