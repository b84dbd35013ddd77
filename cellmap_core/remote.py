"""Stores that are not folders: the public bucket over S3, and plain HTTP servers."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.store import HTTPStore, S3Store
from zarr.abc.store import Store
from zarr.storage import ObjectStore

from cellmap_core.errors import StoreError

_SCHEMES = ("s3", "http", "https")
_REQUEST_SECONDS = 30
# Passing trouble (5xx, resets, time-outs) is tried again with growing pauses, then named.
_RETRY: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10)},
}


def split(location: str) -> tuple[ObjectStore[Any], str] | None:
    """The store and the path in it of a remote location; None for a folder.

    S3 is read without credentials, as the public bucket wants it, unless the environment has
    some; ``AWS_ENDPOINT_URL`` and ``AWS_REGION`` are followed.

    Raises
    ------
    StoreError
        The scheme is not one we read.
    """
    if "://" not in location:
        return None
    parts = urlsplit(location)
    if parts.scheme not in _SCHEMES:
        raise StoreError(f"{location} has scheme {parts.scheme}", f"one of {', '.join(_SCHEMES)}")
    return _open(parts.scheme, parts.netloc), parts.path.strip("/")


def can_list(store: Store) -> bool:
    """Whether a store can tell what it holds (plain HTTP cannot)."""
    if isinstance(store, ObjectStore) and isinstance(store.store, HTTPStore):
        return False
    return store.supports_listing


async def tag(store: ObjectStore[Any], key: str) -> str | None:
    """The store's own tag of a content, or None where nothing is stored.

    It spares reading twice what is far away.
    """
    try:
        about = await obstore.head_async(store.store, key)
    except FileNotFoundError:
        return None
    return str(about["e_tag"] or (about["size"], about["last_modified"]))


@lru_cache(maxsize=64)
def _open(scheme: str, host: str) -> ObjectStore[Any]:
    client: Any = {"timeout": timedelta(seconds=_REQUEST_SECONDS), "allow_http": True}
    if scheme != "s3":
        http = HTTPStore.from_url(f"{scheme}://{host}", client_options=client, retry_config=_RETRY)
        return ObjectStore(http, read_only=True)
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    extra: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    bucket = S3Store(
        host,
        region=os.environ.get("AWS_REGION", "us-east-1"),
        skip_signature="AWS_ACCESS_KEY_ID" not in os.environ,
        client_options=client,
        retry_config=_RETRY,
        **extra,
    )
    return ObjectStore(bucket, read_only=True)
