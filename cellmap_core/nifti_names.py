"""Names of volume files: suffixes in any case, and pairs of ``.hdr`` and ``.img``."""

from __future__ import annotations

from pathlib import Path

from cellmap_core.errors import NiftiError

_COMPRESSED = (".gz", ".bz2")
_PARTNERS = {".img": ".hdr", ".hdr": ".img"}
_VOLUMES = (".nii", ".mgz", ".mgh", *_PARTNERS)


def volume_stem(path: str | Path) -> str:
    """Return the name of a volume file without its suffixes, whatever their case."""
    name = Path(path).name
    for suffixes in (_COMPRESSED, _VOLUMES):
        if end := _end(name, suffixes):
            name = name[: -len(end)]
    return name


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a volume: itself, and its partner where it is one of a pair."""
    partner = _partner(path)
    return (path,) if partner is None else (path, partner)


def header_and_voxels(path: Path) -> tuple[Path, Path]:
    """Return the file of the header and that of the voxels; one file, except of a pair.

    Raises
    ------
    NiftiError
        The other file of a pair is missing.
    """
    kind = _pair_kind(path)
    if not kind:
        return path, path
    partner = _partner(path)
    if partner is None:
        raise NiftiError(
            f"{path} has no {_PARTNERS[kind]} file beside it",
            "both files of the pair",
            "copy the other file there, or save the volume as one .nii file",
        )
    return (path, partner) if kind == ".hdr" else (partner, path)


def _end(name: str, suffixes: tuple[str, ...]) -> str:
    """The suffix that a name ends with; empty where nothing would be left of the name."""
    lower = name.lower()
    return next((s for s in suffixes if lower.endswith(s) and len(lower) > len(s)), "")


def _pair_kind(path: Path) -> str:
    """``.hdr`` or ``.img`` where the name is that of a file of a pair, else empty."""
    name = path.name.lower()
    return _end(name.removesuffix(_end(name, _COMPRESSED)), tuple(_PARTNERS))


def _partner(path: Path) -> Path | None:
    """The other file of a pair, where it is there."""
    kind = _pair_kind(path)
    if not kind:
        return None
    other = _PARTNERS[kind]
    names = [
        volume_stem(path) + suffix + packed
        for suffix in (other, other.upper())
        for packed in ("", ".gz", ".GZ", ".bz2", ".BZ2")
    ]
    return next((p for n in names if (p := path.with_name(n)).is_file()), None)
