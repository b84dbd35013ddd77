"""Units of length, as OME-NGFF axes name them, in nanometres."""

from __future__ import annotations

import unicodedata
from typing import Any

# Names of UDUNITS-2, which OME-NGFF takes, and two that are met beside them.
_NAMES_NM = {
    "picometer": 1e-3,
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "micron": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}
# Case tells mm from Mm: symbols are compared as they are. NFKC writes the micro sign as the
# Greek letter mu, and the angstrom sign as the letter.
_SYMBOLS_NM = {
    "pm": 1e-3,
    "\u00c5": 0.1,
    "nm": 1.0,
    "um": 1e3,
    "\u03bcm": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}

#: Units that are understood, for messages.
UNITS: tuple[str, ...] = (*_NAMES_NM, *_SYMBOLS_NM)


def unit_nm(unit: Any) -> float | None:
    """Return the length of a unit in nm, or None where it is no known unit of length.

    Names may be in any case, plural or spelled ``-metre``; symbols are taken exactly.
    """
    if not isinstance(unit, str):
        return None
    text = unicodedata.normalize("NFKC", unit).strip()
    if text in _SYMBOLS_NM:
        return _SYMBOLS_NM[text]
    word = text.casefold().replace("\u00e5ngstr\u00f6m", "angstrom").removesuffix("s")
    if word.endswith("metre"):
        word = f"{word.removesuffix('metre')}meter"
    return _NAMES_NM.get(word)
