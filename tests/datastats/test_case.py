"""One case: hand-computed truth, three states, and what MONAI gets wrong."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from cellmap_core.datastats.case import case_statistics
from cellmap_core.datastats.components import Components
from cellmap_core.datastats.distribution import Distribution
from cellmap_core.datastats.label_ids import TableIds
from cellmap_core.errors import GeometryError, NiftiError, StatisticsError
from cellmap_core.label_table import PRESENT, UNKNOWN
from cellmap_core.nifti import read_volume


def stats_of(data, entry, do_ccp=False):
    return case_statistics(entry, data.folder, data.table, do_ccp)


def test_geometry_is_x_y_z_in_the_header_unit(new_data_set):
    data = new_data_set()
    entry = data.add("c", np.ones((2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8))
    image = stats_of(data, entry)["image_stats"]
    assert image["shape"] == [[4, 3, 2]]
    assert image["spacing"] == [8.0, 6.0, 4.0]
    assert image["sizemm"] == [32.0, 18.0, 8.0]
    assert image["channels"] == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_axis_is_cropped_and_zeros_inside_count(new_data_set, dtype):
    image = np.zeros((6, 7, 8), dtype)
    image[2:5, 1:6, 3:5] = 10
    image[3, 3, 3] = 0
    data = new_data_set()
    entry = data.add("c", image, np.zeros(image.shape, np.uint8))
    stats = stats_of(data, entry)["image_stats"]
    assert stats["cropped_shape"] == [[2, 5, 3]]
    intensity = stats["intensity"][0]
    assert intensity["mean"] == pytest.approx(10 * 29 / 30)
    assert intensity["min"] == 0


def test_median_is_the_lower_one_and_deviation_that_of_the_population():
    ops = Distribution.of_samples(np.array([1.0, 2.0, 3.0, 10.0])).ops()
    assert ops["median"] == 2.0
    assert ops["stdev"] == pytest.approx(np.std([1, 2, 3, 10]))
    assert ops["percentile"] == pytest.approx(np.percentile([1, 2, 3, 10], [0.5, 10, 90, 99.5]))
    assert ops["percentile_90_0"] == ops["percentile"][2]


def test_blank_case_keeps_its_row(new_data_set):
    data = new_data_set()
    entry = data.add("c", np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8))
    stats = stats_of(data, entry, do_ccp=True)
    assert stats["image_stats"]["cropped_shape"] == [[5, 4, 3]]
    assert stats["image_stats"]["intensity"][0]["max"] == 0
    assert stats["image_foreground_stats"]["intensity"] == []
    assert stats["label_stats"]["labels"] == [0]
    assert stats["label_stats"]["label"][0]["ncomponents"] == 1


def test_constant_image(new_data_set):
    data = new_data_set()
    label = np.zeros((3, 4, 5), np.uint8)
    label[0] = 2
    stats = stats_of(data, data.add("c", np.full((3, 4, 5), 9, np.uint8), label))
    intensity = stats["label_stats"]["label"][1]["image_intensity"][0]
    assert intensity["stdev"] == 0
    assert set(intensity["percentile"]) == {9.0}


def test_three_states(new_data_set):
    # Id 3: a present and b unknown. Id 4: b unknown, nothing present.
    data = new_data_set(("a", "b"), [(PRESENT, UNKNOWN), (0, UNKNOWN)])
    label = np.array([0, 0, 0, 1, 1, 2, 3, 4, 4, 4], np.uint8).reshape(1, 2, 5)
    image = (np.arange(10, dtype=np.uint8) + 1).reshape(1, 2, 5)
    stats = stats_of(data, data.add("c", image, label))
    a, b = stats["class_stats"]
    assert (a["present"], a["absent"], a["unknown"]) == (3, 7, 0)
    assert a["known_fraction"] == 1
    assert a["foreground_percentage"] == pytest.approx(0.3)
    assert a["image_intensity"][0]["mean"] == pytest.approx((4 + 5 + 7) / 3)
    assert (b["present"], b["absent"], b["unknown"]) == (1, 5, 4)
    assert b["known_fraction"] == pytest.approx(0.6)
    assert b["foreground_percentage"] == pytest.approx(1 / 6)
    # Where nothing is known to be present there is no foreground: id 4 is left out.
    foreground = stats["image_foreground_stats"]["intensity"][0]
    assert foreground["mean"] == pytest.approx((4 + 5 + 6 + 7) / 4)


def test_unannotated_class_gives_nothing(new_data_set):
    data = new_data_set()
    label = np.array([0, 1, 2, 2], np.uint8).reshape(1, 2, 2)
    image = np.array([1, 10, 50, 50], np.uint8).reshape(1, 2, 2)
    stats = stats_of(data, data.add("c", image, label, annotated=[1]))
    assert [r["name"] for r in stats["class_stats"]] == ["a"]
    assert stats["image_foreground_stats"]["intensity"][0]["max"] == 10


def test_class_unknown_everywhere_has_no_fraction(new_data_set):
    data = new_data_set(("a",), [(UNKNOWN,)])
    entry = data.add("c", np.ones((2, 2, 2), np.uint8), np.full((2, 2, 2), 2, np.uint8))
    (row,) = stats_of(data, entry)["class_stats"]
    assert row["foreground_percentage"] is None
    assert row["image_intensity"] == []
    assert row["known_fraction"] == 0


@pytest.mark.parametrize("thickness", [1, 2, 5, 100])
def test_components_do_not_depend_on_the_slabs(blobs, thickness):
    labels = blobs((20, 15, 18), 4)
    whole, sliced = Components(), Components()
    whole.add(labels)
    for start in range(0, len(labels), thickness):
        sliced.add(labels[start : start + thickness])
    ours, expected = sliced.shapes(), whole.shapes()
    assert {i: sorted(b) for i, b in ours.items()} == {i: sorted(b) for i, b in expected.items()}


def test_components_touch_by_corners():
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 5
    labels[0, 1, 1] = 7
    found = Components()
    found.add(labels[:1])
    found.add(labels[1:])
    assert found.shapes() == {0: [[2, 2, 2]], 5: [[2, 2, 2]], 7: [[1, 1, 1]]}


def test_more_ids_than_16_bits_have_components():
    labels = np.arange(70_000, dtype=np.uint32).reshape(7, 100, 100)
    found = Components()
    found.add(labels[:3])
    found.add(labels[3:])
    assert found.shapes() == {i: [[1, 1, 1]] for i in range(70_000)}


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float32, np.float64])
def test_values_below_zero_are_cropped_but_counted(new_data_set, rng, dtype):
    image = -rng.integers(1, 100, (6, 7, 8)).astype(dtype)
    inside = (slice(2, 5), slice(1, 6), slice(3, 5))
    image[inside] = rng.integers(1, 100, (3, 5, 2))
    label = rng.integers(0, 3, image.shape).astype(np.uint8)
    data = new_data_set()
    stats = stats_of(data, data.add("c", image, label))
    assert stats["image_stats"]["cropped_shape"] == [[2, 5, 3]]
    assert stats["image_stats"]["intensity"][0]["mean"] == pytest.approx(image[inside].mean())
    assert stats["image_stats"]["intensity"][0]["min"] == image[inside].min()
    for i, row in enumerate(stats["label_stats"]["label"]):
        found = row["image_intensity"][0]
        assert found["mean"] == pytest.approx(image[label == i].mean())
        assert (found["min"], found["max"]) == (image[label == i].min(), image[label == i].max())


def test_channels_each_have_their_numbers(new_data_set, rng):
    image = rng.integers(1, 200, (3, 4, 5, 6)).astype(np.uint8)
    image[1, 0] = 0
    label = rng.integers(0, 3, image.shape[1:]).astype(np.uint8)
    data = new_data_set()
    stats = stats_of(data, data.add("c", image, label), do_ccp=True)
    assert stats["image_stats"]["channels"] == 3
    assert stats["image_stats"]["shape"] == [[6, 5, 4]] * 3
    assert stats["image_stats"]["cropped_shape"] == [[6, 5, 4], [6, 5, 3], [6, 5, 4]]
    for number, row in enumerate(stats["class_stats"], start=1):
        means = [ops["mean"] for ops in row["image_intensity"]]
        assert means == pytest.approx([channel[label == number].mean() for channel in image])
    ids = rng.integers(0, 3, image.shape).astype(np.uint8)
    with pytest.raises(NiftiError, match=r"has shape \(6, 5, 4, 3\)"):
        stats_of(data, data.add("labels", image, ids))


def test_scaled_voxels_are_read_as_they_are_meant(new_data_set, rng):
    """As nibabel writes floats into a file of whole numbers."""
    image = rng.uniform(3, 7, (5, 6, 7))
    label = rng.integers(0, 3, image.shape)
    data = new_data_set()
    entry = data.add("c", np.ones(image.shape, np.uint8), label.astype(np.uint8))
    affine = np.diag([8.0, 6.0, 4.0, 1.0])
    for path, volume in ((entry.image, image), (entry.label, label.astype(np.float64))):
        scaled = nib.Nifti1Image(volume.transpose(2, 1, 0), affine)
        scaled.set_data_dtype(np.int16)
        nib.save(scaled, data.folder / path)
    assert nib.load(data.folder / entry.image).dataobj.slope != 1
    stats = stats_of(data, entry)
    assert stats["image_stats"]["intensity"][0]["mean"] == pytest.approx(image.mean(), rel=1e-4)
    assert stats["label_stats"]["labels"] == [0, 1, 2]
    assert read_volume(data.folder / entry.image) == pytest.approx(image, abs=1e-3)


def test_axes_that_point_elsewhere_are_refused(new_data_set):
    data = new_data_set()
    ones = np.ones((5, 6, 7), np.uint8)
    entry = data.add("c", ones, ones)
    flipped = nib.Nifti1Image(ones.transpose(2, 1, 0), np.diag([-8.0, 6.0, 4.0, 1.0]))
    nib.save(flipped, data.folder / entry.label)
    with pytest.raises(GeometryError, match=r"13 voxels apart; image .*RAS.*; label .*LAS"):
        stats_of(data, entry)


def test_colours_are_no_intensities(new_data_set):
    data = new_data_set()
    ones = np.ones((5, 6, 7), np.uint8)
    entry = data.add("c", ones, ones)
    colours = np.zeros((7, 6, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.diag([8.0, 6.0, 4.0, 1.0])), data.folder / entry.image)
    with pytest.raises(NiftiError, match="expected integers or floats"):
        stats_of(data, entry)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float64])
def test_ids_beyond_sixteen_bits_are_counted_as_they_are(dtype):
    labels = np.array([[[0, 5, 65541]]], dtype)
    assert TableIds(70000).numbers(labels).tolist() == labels.tolist()


def test_labels_by_the_thousand_take_no_more_memory(new_data_set, rng):
    """A table of label × 16-bit intensity would take 2.6 GB."""
    image = rng.integers(1, 60_000, (40, 50, 50)).astype(np.uint16)
    label = np.arange(image.size, dtype=np.uint16).reshape(image.shape) % 5000
    data = new_data_set(tuple(f"c{i}" for i in range(4999)))
    entry = data.add("c", image, label, annotated=[1, 2])
    tracemalloc.start()
    stats = stats_of(data, entry, do_ccp=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
    assert len(stats["label_stats"]["label"]) == 5000
    assert stats["label_stats"]["label"][7]["image_intensity"][0]["mean"] == pytest.approx(
        image[label == 7].mean()
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memory_does_not_grow_with_the_case(new_data_set, rng, dtype, monkeypatch):
    monkeypatch.setattr("cellmap_core.datastats.tally._SLAB_VOXELS", 1 << 17)
    peaks = []
    for depth in (16, 128):
        data = new_data_set(folder=f"{depth}")
        image = (rng.random((depth, 128, 128)) * 250 + 1).astype(dtype)
        label = rng.integers(0, 3, image.shape).astype(np.uint8)
        entry = data.add("c", image, label, suffix=".nii")
        stats_of(data, entry)
        tracemalloc.start()
        stats_of(data, entry)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 1e6


def test_ids_beyond_255(new_data_set):
    data = new_data_set(tuple(f"c{i}" for i in range(299)))
    label = np.array([0, 255, 256, 299], np.uint16).reshape(1, 2, 2)
    entry = data.add("c", np.full((1, 2, 2), 3, np.uint8), label)
    assert stats_of(data, entry, do_ccp=True)["label_stats"]["labels"] == [0, 255, 256, 299]


def test_labels_of_another_type_are_taken_when_whole(new_data_set):
    data = new_data_set()
    label = np.array([0, 1, 2, 2], np.float32).reshape(1, 2, 2)
    image = np.ones((1, 2, 2), np.uint8)
    assert stats_of(data, data.add("c", image, label))["label_stats"]["labels"] == [0, 1, 2]
    with pytest.raises(NiftiError, match=r"labels/d.nii.gz has the label id 0.5; .*whole numbers"):
        stats_of(data, data.add("d", image, label / 2))
    with pytest.raises(StatisticsError, match="ids from -1"):
        stats_of(data, data.add("e", image, label.astype(np.int16) - 1))


def test_faults_are_named(new_data_set):
    data = new_data_set()
    ones = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(StatisticsError, match="ids 0 to 2"):
        stats_of(data, data.add("id", ones, ones * 3))
    broken = ones.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(StatisticsError, match="NaN"):
        stats_of(data, data.add("nan", broken, ones))
    with pytest.raises(GeometryError, match="differ in shape"):
        stats_of(data, data.add("shape", ones, ones[:, :, :3]))
    with pytest.raises(StatisticsError, match="annotated_classes"):
        stats_of(data, data.add("class", ones, ones, annotated=[7]))
    entry = data.add("cut", np.arange(24, dtype=np.uint8).reshape(2, 3, 4), ones)
    whole = (data.folder / entry.image).read_bytes()
    (data.folder / entry.image).write_bytes(whole[:-20])
    with pytest.raises(NiftiError):
        stats_of(data, entry)


def test_image_and_label_apart(new_data_set):
    data = new_data_set()
    ones = np.ones((2, 3, 4), np.uint8)
    near = data.add("near", ones, ones)
    far = data.add("far", ones, ones, voxel_nm=(16.0, 16.0, 16.0))
    with pytest.raises(GeometryError, match=r"of 8 × 6 × 4 nm.* of 16 × 16 × 16 nm"):
        stats_of(data, near.model_copy(update={"label": far.label}))
