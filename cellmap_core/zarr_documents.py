"""Zarr metadata documents that zarr-python refuses although they leave nothing open.

Other writers add keys that a reader does not need (Fiji adds ``nthreads`` to Blosc) or leave
out what has one meaning. A document is read here only where zarr-python could not open it, and
what is left out or added beyond that stays an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import zarr
from zarr.core.array import AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.group import AsyncGroup, GroupMetadata
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import StorePath

# What these codecs write tells how to decode it: all their settings are for encoding.
_SELF_DESCRIBING = frozenset({"blosc", "zstd", "gzip", "zlib", "bz2", "lz4"})
# What has no other meaning when it is left out. An order is written by all, and C and F differ.
_NEEDED_V2 = ("shape", "chunks", "dtype", "compressor", "order")
_NEEDED_V3 = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs")
_GROUP_KEYS = frozenset({"zarr_format", "node_type", "attributes", "consolidated_metadata"})

Document = dict[str, Any]


def open_group(place: StorePath) -> zarr.Group | None:
    """Return the group in a place, without consolidated metadata; None where it is none."""
    document = read_document(place / "zarr.json")
    attributes = (document or {}).get("attributes") or {}
    number: Literal[2, 3] = 3
    if document is None:
        document = read_document(place / ".zgroup")
        attributes = read_document(place / ".zattrs") or {}
        number = 2
    if document is None or document.get("zarr_format") != number:
        return None
    if number == 3 and (document.get("node_type") != "group" or _needed(document)):
        return None
    metadata = GroupMetadata(attributes=attributes, zarr_format=number)
    return zarr.Group(AsyncGroup(metadata=metadata, store_path=place))


def find_array(group: zarr.Group, name: str) -> zarr.Array[Any] | None:
    """Return the array ``name`` of a group from its own document; None where it has none.

    Raises
    ------
    Exception
        What zarr raises for a document that cannot be understood.
    """
    place = group.store_path / name
    if group.metadata.zarr_format == 3:
        document = read_document(place / "zarr.json")
        if document is None or document.get("node_type") != "array":
            return None
        three = ArrayV3Metadata.from_dict(_plain_v3(document))
        return zarr.Array(AsyncArray(three, place))
    document = read_document(place / ".zarray")
    if document is None:
        return None
    attributes = read_document(place / ".zattrs") or {}
    two = ArrayV2Metadata.from_dict({**_plain_v2(document), "attributes": attributes})
    return zarr.Array(AsyncArray(two, place))


def read_document(place: StorePath) -> Document | None:
    """Return a JSON object of a store, or None where there is none.

    Raises
    ------
    ValueError
        It is something else.
    """
    stored = sync(place.get(default_buffer_prototype()))
    if stored is None:
        return None
    document = json.loads(stored.to_bytes())
    if not isinstance(document, dict):
        raise ValueError(f"{place.path} is no JSON object")  # noqa: TRY004 - JSON errors are these
    return document


def _needed(document: Document) -> list[str]:
    """Unknown keys of a v3 group that a reader must understand."""
    extra = document.keys() - _GROUP_KEYS
    return [
        key
        for key in sorted(extra)
        if not isinstance(document[key], dict) or document[key].get("must_understand") is not False
    ]


def _require(document: Document, keys: Sequence[str], name: str) -> None:
    for key in keys:
        if key not in document:
            raise ValueError(f"no {key} in its {name}")


def _plain_v2(document: Document) -> Document:
    """A v2 document with what only writers need left out, and defaults named."""
    _require(document, _NEEDED_V2, ".zarray")
    document = {"fill_value": None, **document}
    if document.get("dimension_separator", "") is None:
        del document["dimension_separator"]
    if re.fullmatch("[<>][uib]1", str(document.get("dtype"))):
        document["dtype"] = f"|{document['dtype'][1:]}"  # A byte has no order.
    document["compressor"] = _plain_v2_codec(document.get("compressor"))
    if isinstance(filters := document.get("filters"), list):
        document["filters"] = [_plain_v2_codec(c) for c in filters] or None
    return document


def _plain_v2_codec(codec: Any) -> Any:
    name = codec.get("id") if isinstance(codec, dict) else None
    return {"id": name} if name in _SELF_DESCRIBING else codec


def _plain_v3(document: Document) -> Document:
    """A v3 document with what only writers need left out, and defaults named."""
    _require(document, _NEEDED_V3, "zarr.json")
    document = dict(document)
    if document.get("consolidated_metadata", 0) is None:
        del document["consolidated_metadata"]
    if document.get("fill_value") is None:  # As in v2, where it may be left open.
        document["fill_value"] = False if document.get("data_type") == "bool" else 0
    if isinstance(encoding := document.get("chunk_key_encoding"), str):
        document["chunk_key_encoding"] = {"name": encoding}
    if isinstance(codecs := document.get("codecs"), list):
        document["codecs"] = [_plain_v3_codec(c) for c in codecs]
    return document


def _plain_v3_codec(codec: Any) -> Any:
    codec = {"name": codec} if isinstance(codec, str) else codec
    if not isinstance(codec, dict):
        return codec
    if str(codec.get("name")).removeprefix("numcodecs.") in _SELF_DESCRIBING:
        return {"name": codec["name"], "configuration": {}}
    settings = codec.get("configuration")
    if codec.get("name") != "sharding_indexed" or not isinstance(settings, dict):
        return codec
    nested = {
        key: [_plain_v3_codec(c) for c in settings[key]]
        for key in ("codecs", "index_codecs")
        if isinstance(settings.get(key), list)
    }
    return {**codec, "configuration": {**settings, **nested}}
