"""CellMap's class names and how they nest.

An atom is a class with no parts of its own; a union is the sum of its atoms, so it can be
told wherever all of them are annotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from cellmap_core.errors import AnnotationError

#: Classes without parts, in CellMap's order.
ATOMS: tuple[str, ...] = (
    "ecs",
    "pm",
    "mito_mem",
    "mito_lum",
    "mito_ribo",
    "golgi_mem",
    "golgi_lum",
    "ves_mem",
    "ves_lum",
    "endo_mem",
    "endo_lum",
    "lyso_mem",
    "lyso_lum",
    "ld_mem",
    "ld_lum",
    "er_mem",
    "er_lum",
    "eres_mem",
    "eres_lum",
    "ne_mem",
    "ne_lum",
    "np_out",
    "np_in",
    "hchrom",
    "nhchrom",
    "echrom",
    "nechrom",
    "nucpl",
    "nucleo",
    "mt_out",
    "cent",
    "cent_dapp",
    "cent_sdapp",
    "ribo",
    "cyto",
    "mt_in",
    "vim",
    "glyco",
    "rbc",
    "perox_mem",
    "perox_lum",
    "isg_mem",
    "isg_lum",
    "isg_ins",
    "actin",
    "tbar",
    "bm",
    "chloroplast_mem",
    "chloroplast_lum",
    "chloroplast_sg",
    "vacuole_mem",
    "vacuole_lum",
    "plasmodesmata",
)

_PARTS = {
    "nuc": "ne_mem ne_lum np_out np_in hchrom nhchrom echrom nechrom nucpl nucleo",
    "golgi": "golgi_mem golgi_lum",
    "ves": "ves_mem ves_lum",
    "endo": "endo_mem endo_lum",
    "lyso": "lyso_mem lyso_lum",
    "ld": "ld_mem ld_lum",
    "eres": "eres_mem eres_lum",
    "perox": "perox_mem perox_lum",
    "mito": "mito_mem mito_lum mito_ribo",
    "er": "er_mem er_lum eres_mem eres_lum ne_mem ne_lum np_out np_in",
    "ne": "ne_mem ne_lum np_out np_in",
    "np": "np_out np_in",
    "chrom": "hchrom nhchrom echrom nechrom",
    "mt": "mt_out mt_in",
    "isg": "isg_mem isg_lum isg_ins",
    "er_mem_all": "er_mem eres_mem ne_mem",
    "ne_mem_all": "ne_mem np_out np_in",
    "cent_all": "cent cent_dapp cent_sdapp",
    "chloroplast": "chloroplast_mem chloroplast_lum chloroplast_sg",
    "vacuole": "vacuole_mem vacuole_lum",
}

# Everything but what lies outside a cell, and the classes of plants and blood.
_NOT_CELL = frozenset(
    {
        "ecs",
        "rbc",
        "bm",
        "chloroplast_mem",
        "chloroplast_lum",
        "chloroplast_sg",
        "vacuole_mem",
        "vacuole_lum",
        "plasmodesmata",
    }
)

# Atoms that are annotated in too few places to be scored.
_NOT_SCORED = frozenset({"nhchrom", "nechrom", "nucleo", "cent", "cent_dapp", "cent_sdapp", "ribo"})

#: Union → its atoms.
UNIONS: dict[str, tuple[str, ...]] = {
    **{name: tuple(parts.split()) for name, parts in _PARTS.items()},
    "cell": tuple(atom for atom in ATOMS if atom not in _NOT_CELL),
}

#: The classes that the CellMap Segmentation Challenge scores.
CHALLENGE48: tuple[str, ...] = (
    *(a for a in ATOMS[: ATOMS.index("vim")] if a not in _NOT_SCORED),
    *("nuc", "golgi", "ves", "endo", "lyso", "ld", "eres", "perox_mem", "perox_lum", "perox"),
    *("mito", "er", "ne", "np", "chrom", "mt", "cell", "er_mem_all", "ne_mem_all"),
)

#: Named sets that stand for their classes wherever classes are asked for.
SETS: dict[str, tuple[str, ...]] = {"challenge48": CHALLENGE48, "atoms": ATOMS}

KNOWN: frozenset[str] = frozenset(ATOMS) | frozenset(UNIONS)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Class names with the named sets replaced by their classes, each once, in order."""
    return tuple(dict.fromkeys(c for name in names for c in SETS.get(name, (name,))))


def suggest(name: str, choices: list[str] | tuple[str, ...]) -> str:
    """Name the nearest of ``choices``, or all of them, for a message about ``name``."""
    near = get_close_matches(name, choices, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(choices)}"


def check_class(name: str, available: tuple[str, ...]) -> None:
    """Refuse a class that is neither CellMap's nor among the ``available`` arrays.

    Raises
    ------
    AnnotationError
        With the nearest valid names.
    """
    if name not in KNOWN and name not in available:
        raise AnnotationError(
            f"unknown class {name!r}",
            "a CellMap class or one the crop has",
            suggest(name, sorted(KNOWN | set(available))),
        )
