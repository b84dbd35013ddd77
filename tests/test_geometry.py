"""Places in nanometres, from the store through conversion to the files, whatever the grids are."""

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmap_core.datalist import read_datalist
from cellmap_core.grid import Grid
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.nifti import read_grid, read_volume
from cellmap_core.resample import nearest
from tests.test_convert import run
from tests.test_resample import centres, grid

STORED = np.array([0, 1, 255], np.uint8)  # By state.
CLASSES = ("mito", "nuc")
ENCODING = {"absent": 0, "present": 1, "unknown": 255}


@dataclass
class Case:
    """The only case of a conversion: its files, read back."""

    info: object
    grid: Grid
    image: np.ndarray
    states: np.ndarray
    path: Path


@contextmanager
def converted(raw_grid, raw, label_grid, labels, chunks=(16, 16, 16), **options):
    """One crop of these values (labels: by class), written as CellMap has it and converted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "one.zarr" / "recon-1"
        write(store / "em" / "fibsem-uint8", raw_grid, raw, chunks)
        crop = store / "labels" / "groundtruth" / "crop1"
        zarr.create_group(crop, zarr_format=2)
        for kind, values in labels.items():
            annotation = {"type": "semantic_segmentation", "encoding": ENCODING}
            attributes = {"cellmap": {"annotation": {"annotation_type": annotation}}}
            write(crop / kind, label_grid, STORED[values], chunks, attributes)
        (folder / "split.csv").write_text(
            f'"train","one.zarr","recon-1/em/fibsem-uint8","one.zarr",'
            f'"recon-1/labels/groundtruth/crop1/[{",".join(labels)}]"\n'
        )
        result = run(folder / "split.csv", folder / "out", min_coverage=0, **options)
        datalist = read_datalist(result.datalist)
        (entry,) = datalist.training
        path = datalist.path(entry.image)
        label = read_volume(datalist.path(entry.label))
        yield Case(
            info=entry.cellmap,
            grid=read_grid(path),
            image=read_volume(path),
            states=np.moveaxis(datalist.table.states()[label], -1, 0),
            path=path,
        )


def write(folder, where, values, chunks, attributes=None):
    group = zarr.create_group(folder, zarr_format=2)
    array = group.create_array(
        "s0", shape=values.shape, dtype=values.dtype, chunks=chunks, fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        config={"write_empty_chunks": True},
    )  # fmt: skip
    array[:] = values
    rows = [
        {"type": "scale", "scale": list(where.voxel_nm)},
        {"type": "translation", "translation": list(where.translation_nm)},
    ]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    datasets = [{"path": "s0", "coordinateTransformations": rows}]
    group.attrs.update(
        {**(attributes or {}), "multiscales": [{"axes": axes, "datasets": datasets}]}
    )


def triples(element):
    return st.tuples(element, element, element)


# To a hundredth of a nanometre, as voxel sizes are given.
sizes = st.integers(200, 2000).map(lambda n: n / 100)
places = st.integers(-100_000, 100_000).map(lambda n: n / 100)
# Longer than one output voxel and a half, so that a crop is never blank.
SMALLEST_NM = 32


@st.composite
def situations(draw):
    """A raw grid, a label grid anywhere in it, by half voxels too, and a target voxel size."""
    raw_voxel = draw(triples(sizes))
    shape = [max(12, int(np.ceil(64 / v))) for v in raw_voxel]
    raw = grid(tuple(shape), raw_voxel, draw(triples(places)))
    voxel, low, count = [], [], []
    for axis in range(3):
        v = draw(st.sampled_from([raw_voxel[axis], raw_voxel[axis] / 2, None])) or draw(sizes)
        extent = shape[axis] * raw_voxel[axis]
        start = draw(st.integers(0, int(2 * (extent - SMALLEST_NM - 20) / raw_voxel[axis]))) / 2
        room = extent - start * raw_voxel[axis]
        n = draw(st.integers(int(np.ceil(SMALLEST_NM / v)), int(room / v + 1e-6)))
        voxel.append(v)
        count.append(n)
        low.append(raw.box.low_nm[axis] + start * raw_voxel[axis])
    return raw, grid(tuple(count), tuple(voxel), tuple(low)), draw(triples(sizes))


def ramp(where, low, slope):
    """A linear function of the position, 100 at the edge ``low``."""
    z, y, x = (s * (centres(where, a) - low[a]) for a, s in enumerate(slope))
    return 100 + z[:, None, None] + y[:, None] + x


@settings(max_examples=50, deadline=None)
@given(
    situations(),
    triples(st.sampled_from([0.5, 1.0, 3.0, -0.25])),
    st.sampled_from(["float32", "uint16"]),
    st.sampled_from([(16, 16, 16), (5, 7, 11), (64, 64, 64)]),
)
def test_every_voxel_has_the_value_of_its_place(situation, slope, dtype, chunks):
    raw, label, target = situation
    values = ramp(raw, raw.box.low_nm, slope)
    if dtype == "uint16":
        slope = tuple(map(abs, slope))
        values = np.rint(ramp(raw, raw.box.low_nm, slope))
    half = np.zeros(label.shape_vox, np.uint8)
    half[:, :, ::2] = PRESENT
    with converted(
        raw, values.astype(dtype), label, {"mito": half}, chunks, target_spacing=target
    ) as case:
        check_extent(case, label, target)
        check_readers(case)
        expected = ramp(case.grid, raw.box.low_nm, slope)
        assert case.image.dtype == dtype
        rounding = 1 if dtype == "uint16" else 1e-5 * np.abs(values).max()
        error = np.abs(case.image.astype(float) - expected)
        assert (error <= allowed(case.grid, raw, slope) + rounding + 1e-3).all()


def check_extent(case, label, target):
    """The crop starts where its labels start, and ends there within half a voxel."""
    assert np.allclose(case.info.voxel_nm, target, rtol=1e-6)
    assert np.allclose(case.grid.box.low_nm, label.box.low_nm, atol=1e-3)
    over = np.subtract(case.grid.box.high_nm, label.box.high_nm)
    assert (np.abs(over) <= np.array(target) / 2 + 1e-3).all()


def check_readers(case):
    """Two readers give the physical points that the datalist says."""
    last = [n - 1 for n in case.image.shape]
    image, itk = nib.load(case.path), sitk.ReadImage(str(case.path))
    for index in ((0, 0, 0), last, [n // 3 for n in last]):
        zyx = np.add(case.info.translation_nm, np.multiply(case.info.voxel_nm, index))
        xyz = [int(i) for i in reversed(index)]
        assert np.allclose((image.affine @ [*xyz, 1])[2::-1], zyx, rtol=1e-5, atol=1e-3)
        # ITK's first two axes point the other way.
        point = np.array(itk.TransformIndexToPhysicalPoint(xyz)) * (-1, -1, 1)
        assert np.allclose(point[::-1], zyx, rtol=1e-5, atol=1e-3)
        assert image.dataobj[tuple(xyz)] == itk.GetPixel(xyz) == case.image[tuple(index)]


def allowed(where, raw, slope):
    """Half an output voxel, and half a raw voxel more where the raw's edge value is held."""
    parts = []
    for axis in range(3):
        low = centres(where, axis) - where.voxel_nm[axis] / 2
        margin = raw.voxel_nm[axis] / 2
        border = (low < raw.box.low_nm[axis] + margin) | (
            low + where.voxel_nm[axis] > raw.box.high_nm[axis] - margin
        )
        nm = where.voxel_nm[axis] / 2 + border * margin
        parts.append(abs(slope[axis]) * nm)
    z, y, x = parts
    return z[:, None, None] + y[:, None] + x


@settings(max_examples=50, deadline=None)
@given(
    ratio=triples(st.integers(1, 4)),
    count=triples(st.integers(2, 6)),
    voxel=triples(st.sampled_from([2.0, 2.62, 4.0, 1.7])),
    low=triples(places),
    chunks=triples(st.integers(3, 16)),
    finer=triples(st.sampled_from([1, 2, 0.5])),
    shares=st.sampled_from([(0.5, 0.4, 0.1), (0.3, 0.3, 0.4), (0.9, 0.1, 0.0), (0.0, 1.0, 0.0)]),
    seed=st.integers(0, 1 << 30),
)
def test_labels_are_the_majority_of_their_blocks(
    ratio, count, voxel, low, chunks, finer, shares, seed
):
    """Where output voxels are whole blocks; a tie goes to present, then to unknown."""
    random = np.random.default_rng(seed)
    shape = tuple(r * n for r, n in zip(ratio, count, strict=True))
    label = grid(shape, voxel, low)
    labels = {name: random.choice(3, shape, p=shares).astype(np.uint8) for name in CLASSES}
    target = tuple(r * v for r, v in zip(ratio, voxel, strict=True))
    raw, values = around(label, tuple(f * t for f, t in zip(finer, target, strict=True)), random)
    with converted(raw, values, label, labels, chunks, target_spacing=target) as case:
        for found, name in zip(case.states, CLASSES, strict=True):
            assert np.array_equal(found, majority(labels[name], ratio))


def around(label, voxel, random):
    """Raw of some noise around labels, one voxel more on each side."""
    shape = tuple(int(np.ceil(n / v)) + 2 for n, v in zip(label.box.size_nm, voxel, strict=True))
    low = tuple(edge - v for edge, v in zip(label.box.low_nm, voxel, strict=True))
    return grid(shape, voxel, low), random.integers(1, 255, shape, dtype=np.uint8)


def majority(states, ratio):
    z, y, x = (n // r for n, r in zip(states.shape, ratio, strict=True))
    blocks = states.reshape(z, ratio[0], y, ratio[1], x, ratio[2])
    present, unknown, absent = (
        (blocks == state).sum(axis=(1, 3, 5)) for state in (PRESENT, UNKNOWN, ABSENT)
    )
    result = np.where(unknown >= absent, UNKNOWN, ABSENT)
    result[(present >= unknown) & (present >= absent)] = PRESENT
    return result


@settings(max_examples=30, deadline=None)
@given(
    shape=triples(st.integers(3, 14)),
    start=triples(st.integers(0, 9)),
    voxel=triples(sizes),
    low=triples(places),
    finer=st.sampled_from([1, 2]),
    seed=st.integers(0, 1 << 30),
)
def test_labels_come_back_as_they_were(shape, start, voxel, low, finer, seed):
    """Out to a file on their own grid, whether the raw's or finer, and back into the volume."""
    random = np.random.default_rng(seed)
    raw = grid((24, 24, 24), voxel, low)
    stop = tuple(a + n for a, n in zip(start, shape, strict=True))
    label = raw.cut(start, stop).resampled(tuple(v / finer for v in voxel))
    labels = {name: random.integers(0, 3, label.shape_vox, dtype=np.uint8) for name in CLASSES}
    values = random.integers(1, 255, raw.shape_vox, dtype=np.uint8)
    with converted(raw, values, label, labels, target_spacing="native") as case:
        fine = raw.resampled(label.voxel_nm)
        place = tuple(slice(a * finer, b * finer) for a, b in zip(start, stop, strict=True))
        for found, name in zip(case.states, CLASSES, strict=True):
            assert np.array_equal(nearest(found, case.grid, label), labels[name])
            whole = np.full(fine.shape_vox, UNKNOWN, np.uint8)
            whole[place] = labels[name]
            assert np.array_equal(nearest(found, case.grid, fine, outside=UNKNOWN), whole)
        if finer == 1:
            part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            assert np.array_equal(case.image, values[part])
