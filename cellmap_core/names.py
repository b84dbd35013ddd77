"""Names that tell things with the same base name apart, taken from the folders above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cellmap_core.provenance import key_of


def telling_folders(paths: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return, for each path, the folders that distinguish it from all the others.

    Folders are compared level by level, the innermost first. A level at which all paths agree
    is left out. The result does not depend on the order of the paths.

    Parameters
    ----------
    paths : sequence of sequence of str
        The folders of each path, the outermost first. No two paths are equal.

    Returns
    -------
    list of tuple of str
        The distinguishing folders of each path, the outermost first.
    """
    told: list[tuple[str, ...]] = [() for _ in paths]
    for level in range(1, max((len(path) for path in paths), default=0) + 1):
        if len(set(told)) == len(told):
            break
        folders = [path[-level] if level <= len(path) else "" for path in paths]
        if len(set(folders)) > 1:
            told = [(f, *rest) if f else rest for f, rest in zip(folders, told, strict=True)]
    return told


def distinct_names(
    base: str, places: Sequence[str], taken: frozenset[str] = frozenset(), joint: str = "_"
) -> dict[str, str]:
    """Name things that share a base name after the folders they are in.

    Parameters
    ----------
    base : str
        The name they share.
    places : sequence of str
        The path of each, of which the last part is the thing itself.
    taken : frozenset of str
        Names that other things have.
    joint : str
        What stands between folders and base name.

    Returns
    -------
    dict of str to str
        Place → name. A digest of the place ends a name that would be somebody else's.
    """
    ordered = sorted(set(places))
    folders = telling_folders([_folders(place) for place in ordered])
    names = [joint.join((*told, base)) for told in folders]
    count = Counter(names)
    return {
        place: f"{name}-{key_of(place)[:6]}" if count[name] > 1 or name in taken else name
        for place, name in zip(ordered, names, strict=True)
    }


def _folders(place: str) -> tuple[str, ...]:
    return tuple(part for part in place.rpartition("://")[2].split("/")[:-1] if part)
