"""Inner chunks that a shard does not hold are missing, whatever turns the shard."""

import itertools

import numpy as np
import pytest
import zarr
from zarr.codecs import (
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from cellmap_core.chunks import ChunkReader
from cellmap_core.errors import MetadataError

SHAPE, SHARD, CHUNK = (24, 24, 24), (12, 12, 24), (6, 4, 12)
INNER = [BytesCodec(), ZstdCodec()]
pytestmark = pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")


def written(folder, codecs, values):
    array = zarr.create_array(
        folder, shape=SHAPE, dtype="u1", chunks=SHARD, fill_value=0,
        filters=codecs[:-1] or None, serializer=codecs[-1], compressors=None,
    )  # fmt: skip
    array[:] = values
    return ChunkReader(zarr.open_array(folder, mode="r"))


def turned(values, *orders):
    for order in orders:
        values = tuple(values[axis] for axis in order)
    return values


ORDERS = [
    *((order,) for order in itertools.permutations(range(3))),
    ((1, 2, 0), (0, 2, 1)),
    ((2, 0, 1), (2, 0, 1)),
]


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("where", ["start", "end"])
def test_missing_inner_chunks_of_turned_shards_are_told(orders, where, tmp_path):
    random = np.random.default_rng(3)
    counts = tuple(n // c for n, c in zip(SHAPE, CHUNK, strict=True))
    there = random.random(counts) < 0.5
    there[: SHARD[0] // CHUNK[0], : SHARD[1] // CHUNK[1]] = False  # A shard that is not there.
    values = there.repeat(CHUNK[0], 0).repeat(CHUNK[1], 1).repeat(CHUNK[2], 2).astype(np.uint8)
    sharding = ShardingCodec(chunk_shape=turned(CHUNK, *orders), codecs=INNER, index_location=where)
    reader = written(tmp_path / "a", [*(TransposeCodec(order=o) for o in orders), sharding], values)
    assert reader.chunk_shape == CHUNK
    chunks = reader.survey((0, 0, 0), SHAPE)
    assert np.array_equal(chunks.stored, there)
    low, high = (7, 5, 13), (23, 17, 24)
    part = reader.survey(low, high)
    block = np.zeros([b - a for a, b in zip(low, high, strict=True)], np.uint8)
    for (z, y, x), piece in reader.pieces(part, low, high):
        block[z : z + piece.shape[0], y : y + piece.shape[1], x : x + piece.shape[2]] = piece
    assert np.array_equal(block, values[tuple(map(slice, low, high))])


def nested():
    return ShardingCodec(
        chunk_shape=(12, 12, 12), codecs=[ShardingCodec(chunk_shape=CHUNK, codecs=INNER)]
    )


ODD = {
    "shards in shards": [nested()],
    "shards and gzip around": [ShardingCodec(chunk_shape=CHUNK, codecs=INNER), GzipCodec()],
    "an index of bytes, zstd": [
        ShardingCodec(chunk_shape=CHUNK, codecs=INNER, index_codecs=[BytesCodec(), ZstdCodec()])
    ],
    "an index of bytes, crc32c": [
        ShardingCodec(
            chunk_shape=CHUNK,
            codecs=INNER,
            index_codecs=[BytesCodec(endian="big"), Crc32cCodec()],
        )
    ],
}


@pytest.mark.parametrize("reason", ODD)
def test_shards_that_cannot_be_looked_through_are_refused(reason, tmp_path):
    """Counted whole, a shard with one chunk would be as good as a full one."""
    zarr.create(
        store=tmp_path / "a", shape=SHAPE, dtype="u1", chunks=(24, 24, 24), zarr_format=3,
        codecs=ODD[reason], fill_value=0,
    )  # fmt: skip
    with pytest.raises(MetadataError, match=f"a has .*{reason}.*cannot be told"):
        ChunkReader(zarr.open_array(tmp_path / "a", mode="r"))
