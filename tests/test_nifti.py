"""NIfTI files of all kinds: read for what they are, or refused for the true reason."""

import bz2
import gzip
import logging
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from cellmap_core import nifti_forms
from cellmap_core.datastats.case import plain_statistics
from cellmap_core.errors import NiftiError
from cellmap_core.grid import Grid
from cellmap_core.nifti import (
    iter_slabs,
    read_geometry,
    read_grid,
    read_volume,
    write_slabs,
    write_volume,
)
from cellmap_core.nifti_names import files_of, volume_stem
from cellmap_core.training.volumes import open_volume

SHAPE = (5, 6, 7)
AFFINE = np.array([[-8.0, 0, 0, 500], [0, 6, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    """Noise that gzip and bzip2 make longer (z, y, x)."""
    return np.random.default_rng(3).integers(0, 1 << 16, SHAPE).astype(np.uint16)


@pytest.fixture(autouse=True)
def said(caplog):
    """What is logged; each file is named again in each test."""
    nifti_forms._warn.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def save(path, volume, affine=AFFINE, kind=nib.Nifti1Image, change=None, name=None):
    """Save by nibabel, under the name that it wants, and rename."""
    nib.save(kind(volume.transpose(2, 1, 0), affine), path)
    if change:
        # nibabel sets the forms anew when it saves.
        content, header = path.read_bytes(), nib.load(path).header
        change(header)
        path.write_bytes(header.binaryblock + content[len(header.binaryblock) :])
    return path if name is None else path.rename(path.with_name(name))


def write_like(path, like, volume):
    write_slabs(path, read_geometry(like), volume.dtype, [volume], like)


def packed(path, pack, name):
    other = path.with_name(name)
    other.write_bytes(pack(path.read_bytes()))
    path.unlink()
    return other


WAYS = {
    "upper case": lambda d, v: save(d / "a.nii.gz", v, name="A.NII.GZ"),
    "half upper case": lambda d, v: save(d / "a.nii.gz", v, name="a.nii.GZ"),
    "plain in upper case": lambda d, v: save(d / "a.nii", v, name="A.NII"),
    "plain as gz": lambda d, v: save(d / "a.nii", v, name="a.nii.gz"),
    "gz as plain": lambda d, v: save(d / "a.nii.gz", v, name="a.nii"),
    "bz2": lambda d, v: save(d / "a.nii.bz2", v),
    "bz2 as gz": lambda d, v: save(d / "a.nii.bz2", v, name="a.nii.gz"),
    "img": lambda d, v: save(d / "a.img", v, kind=nib.Nifti1Pair),
    "hdr": lambda d, v: save(d / "a.img", v, kind=nib.Nifti1Pair).with_suffix(".hdr"),
    "img.gz": lambda d, v: save(d / "a.img.gz", v, kind=nib.Nifti1Pair),
    "img that is gzip": lambda d, v: packed(
        save(d / "b.img", v, kind=nib.Nifti1Pair).rename(d / "a.raw"), gzip.compress, "b.img"
    ),
    "NIfTI-2": lambda d, v: save(d / "a.nii.gz", v, kind=nib.Nifti2Image),
    "NIfTI-2 pair": lambda d, v: save(d / "a.hdr", v, kind=nib.Nifti2Pair),
    "mgz": lambda d, v: save(d / "a.mgz", v.astype(np.int32), kind=nib.MGHImage),
    "mgh": lambda d, v: save(d / "a.mgh", v.astype(np.float32), kind=nib.MGHImage),
    "big endian": lambda d, v: save(
        d / "a.nii", v, kind=lambda a, m: nib.Nifti1Image(a, m, nib.Nifti1Header(endianness=">"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_files_are_read_for_what_they_hold(way, volume, tmp_path):
    path = WAYS[way](tmp_path, volume)
    assert np.array_equal(np.concatenate(list(iter_slabs(path, slab_bytes=1))), volume)
    assert np.array_equal(read_volume(path), volume)
    assert np.allclose(read_geometry(path).matrix, AFFINE)
    assert read_geometry(path).shape_vox == SHAPE
    for _ in range(2):
        assert np.array_equal(open_volume(path, tmp_path / "cache")[0], volume)
    stats = plain_statistics(path, None, do_ccp=False)["image_stats"]
    assert stats["intensity"][0]["mean"] == pytest.approx(volume.mean())
    assert stats["spacing"] == pytest.approx([8.0, 6.0, 4.0])
    assert volume_stem(path).lower() in "ab"
    write_like(tmp_path / "like.nii.gz", path, volume)
    assert np.allclose(nib.load(tmp_path / "like.nii.gz").affine, AFFINE)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.nii", b"0" * 400)


def analyze_75(path):
    nib.save(nib.AnalyzeImage(np.zeros(SHAPE, np.int16), np.diag([8.0, 8, 8, 1])), path)


REFUSED = {
    "a.nii": (zipped, "a zip archive"),
    "b.nii": (lambda p: p.write_bytes(b"II*\0" + bytes(600)), "a TIFF file"),
    "c.nii.gz": (lambda p: p.write_bytes(gzip.compress(b"NRRD0004" + bytes(600))), "NRRD"),
    "d.nii": (lambda p: p.write_bytes(bytes(128) + b"DICM" + bytes(600)), "a DICOM file"),
    "e.nii": (lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(600)), "a zstd file"),
    "f.nii": (lambda p: p.write_bytes(b"anything else" * 60), "is no NIfTI"),
    "g.nii": (lambda p: p.write_bytes(b""), "is no NIfTI"),
    "h.img": (analyze_75, "Analyze 7.5"),
    "i.img": (lambda p: p.write_bytes(bytes(400)), r"has no \.hdr file beside it"),
    "j.nii": (lambda p: p.write_bytes(b"\x5c\1\0\0" + bytes(50)), "Analyze|ends inside"),
    "k.nii.gz": (lambda p: p.write_bytes(gzip.compress(bytes(9000))[:30]), "damaged|no NIfTI"),
    "l.nii.bz2": (lambda p: p.write_bytes(bz2.compress(bytes(9000))[:20]), "damaged"),
    "m.nii.bz2": (lambda p: p.write_bytes(b"BZh9 but not so" * 30), "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_volume_is_refused_by_what_it_is(name, tmp_path):
    make, message = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(NiftiError, match=message):
        read_geometry(tmp_path / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("datatype", 9999), ("vox_offset", 100), ("vox_offset", np.nan), ("dim", 0), ("dim", -3)],
)
def test_damaged_headers_are_refused(field, value, volume, tmp_path):
    path = save(tmp_path / "a.nii", volume, change=lambda h: h.__setitem__(field, value))
    for read in (read_geometry, read_volume, lambda p: open_volume(p, tmp_path)):
        with pytest.raises(NiftiError, match=r"a\.nii has"):
            read(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.bz2", ".img", ".mgz"])
def test_files_that_end_too_early_are_refused(suffix, volume, tmp_path):
    kind = {".img": nib.Nifti1Pair, ".mgz": nib.MGHImage}.get(suffix, nib.Nifti1Image)
    path = save(tmp_path / f"a{suffix}", volume.astype(np.int32), kind=kind)
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    for read in (read_volume, lambda p: open_volume(p, tmp_path), lambda p: list(iter_slabs(p))):
        with pytest.raises(NiftiError, match=r"damaged|ends"):
            read(path)


def test_both_files_of_a_pair_count(volume, tmp_path):
    path = save(tmp_path / "A.img", volume, kind=nib.Nifti1Pair, name="A.IMG")
    header = (tmp_path / "A.hdr").rename(tmp_path / "A.HDR")
    assert files_of(path) == (path, header)
    assert files_of(header) == (header, path)
    before = open_volume(path, tmp_path)[1]
    content = bytearray(header.read_bytes())
    content[148:152] = b"note"
    header.write_bytes(content)
    assert open_volume(path, tmp_path)[1] != before


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_long_axis_makes_nifti_2(axis, suffix, tmp_path):
    for length, kind in ((32767, nib.Nifti1Image), (32768, nib.Nifti2Image)):
        shape = tuple(length if a == axis else 2 for a in range(3))
        grid = Grid(shape_vox=shape, voxel_nm=(4, 6, 8), translation_nm=(2, 3, 1))
        volume = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
        write_volume(tmp_path / f"long{suffix}", grid, volume)
        image = nib.load(tmp_path / f"long{suffix}")
        assert type(image) is kind
        assert np.array_equal(np.asarray(image.dataobj).T, volume)
        assert read_grid(tmp_path / f"long{suffix}") == grid
        assert np.array_equal(read_volume(tmp_path / f"long{suffix}"), volume)


# --- Which affine counts ---


def forms(sform=None, qform=None, pixdim=None):
    def change(header):
        header.set_qform(AFFINE if qform is None else qform, code=0 if qform is None else 1)
        header.set_sform(AFFINE if sform is None else sform, code=0 if sform is None else 1)
        if pixdim is not None:
            header["pixdim"][1:4] = pixdim
        if qform is None:
            header["pixdim"][0] = 0

    return change


def moved(*xyz):
    affine = AFFINE.copy()
    affine[:3, 3] += xyz
    return affine


def without_handedness(header):
    header.set_qform(AT_ZERO, code=1)
    header.set_sform(AFFINE, code=0)
    header["pixdim"][0] = 0


SINGULAR = np.diag([8.0, 6.0, 0.0, 1.0])
AT_ZERO = np.diag([8.0, 6.0, 4.0, 1.0])
COUNTS = {
    "both agree": (forms(AFFINE, AFFINE), AFFINE, None),
    "sform alone": (forms(sform=AFFINE), AFFINE, None),
    "qform alone": (forms(qform=AFFINE), AFFINE, None),
    "qform without handedness": (without_handedness, AT_ZERO, None),
    "none": (forms(), AT_ZERO, "no usable sform or qform; pixdim counts"),
    "a twentieth apart": (forms(AFFINE, moved(0.4, 0, 0)), AFFINE, None),
    "apart": (forms(AFFINE, moved(4, 0, 0)), AFFINE, "lie 0.5 voxels apart; the sform counts"),
    "sform is no affine": (forms(SINGULAR, AFFINE), AFFINE, "but its sform is invalid"),
    "sform is zero": (forms(np.zeros((4, 4))), AT_ZERO, "its sform is invalid"),
    "sform is NaN": (forms(np.full((4, 4), np.nan), AFFINE), AFFINE, "its sform is invalid"),
    "pixdim of another size": (
        forms(AFFINE, pixdim=(8, 6, 5)), AFFINE, "voxel size .* pixdim; the sform counts",
    ),
    "pixdim negative": (forms(AFFINE, AFFINE, (-8, 6, 4)), AFFINE, "its qform is invalid"),
}  # fmt: skip


@pytest.mark.parametrize("what", COUNTS)
def test_which_form_counts(what, volume, tmp_path, said):
    change, expected, warning = COUNTS[what]
    path = save(tmp_path / "crop7.nii", volume, change=change)
    for _ in range(2):
        assert np.allclose(read_geometry(path).matrix, expected, atol=1e-5)
    messages = [m for m in said.messages if "crop7.nii" in m]
    if warning is None:
        assert messages == []
    else:
        assert len(messages) == len(set(messages)) > 0
        assert any(re.search(warning, m) for m in messages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forms(AFFINE, np.diag([1.0, -1, 1, 1]) @ AFFINE), "one mirrors the other"),
        (forms(AFFINE, AFFINE @ np.diag([2.0, 2, 2, 1])), "their voxel sizes differ"),
        (forms(pixdim=(0, 0, 0)), "no usable sform or qform, and the voxel size"),
        (forms(pixdim=(8, -6, 4)), "no usable sform or qform, and the voxel size"),
        (forms(SINGULAR, pixdim=(8, np.nan, 4)), "no usable sform or qform, and the voxel size"),
    ],
)
def test_forms_that_exclude_each_other_are_refused(change, message, volume, tmp_path):
    path = save(tmp_path / "crop7.nii", volume, change=change)
    with pytest.raises(NiftiError, match=rf"crop7\.nii has .*{message}"):
        read_geometry(path)


@pytest.mark.parametrize("what", COUNTS)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_like_another_is_placed_as_that_by_every_reader(what, kind, volume, tmp_path):
    path = save(tmp_path / "a.nii", volume, kind=kind, change=COUNTS[what][0])
    labels = (volume % 3).astype(np.uint8)
    write_like(tmp_path / "b.nii.gz", path, labels)
    one, other = nib.load(path), nib.load(tmp_path / "b.nii.gz")
    assert type(other) is kind
    assert np.array_equal(one.affine, other.affine, equal_nan=True)
    assert np.array_equal(other.dataobj, labels.transpose(2, 1, 0))
    assert read_geometry(path) == read_geometry(tmp_path / "b.nii.gz")
    for field in ("sform_code", "qform_code", "quatern_b", "xyzt_units"):
        assert one.header[field] == other.header[field]


def test_what_itk_writes_is_read_and_written_back_as_itk_has_it(volume, tmp_path):
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((8.0, 6.0, 4.0))
    image.SetOrigin((100.0, 200.0, 300.0))
    angle = np.radians(30)
    turn = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]
    for direction in (np.eye(3).ravel().tolist(), turn):
        image.SetDirection(direction)
        sitk.WriteImage(image, tmp_path / "a.nii.gz")
        geometry = read_geometry(tmp_path / "a.nii.gz")
        index = [6, 2, 3]
        # ITK's first two axes point the other way.
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        assert np.allclose((geometry.matrix @ [*index, 1])[:3], point, atol=1e-3)
        write_like(tmp_path / "b.nii.gz", tmp_path / "a.nii.gz", volume)
        back = sitk.ReadImage(tmp_path / "b.nii.gz")
        assert np.allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-3)
        assert np.allclose(back.GetSpacing(), image.GetSpacing())
        assert np.allclose(back.GetDirection(), direction, atol=1e-6)
        assert np.array_equal(sitk.GetArrayFromImage(back), volume)


def test_lengths_in_micrometres_are_converted(volume, tmp_path):
    def micrometres(header):
        header.set_xyzt_units("micron")

    small = np.diag([0.008, 0.006, 0.004, 1.0])
    path = save(tmp_path / "a.nii", volume, small, change=micrometres)
    assert read_geometry(path).voxel_nm == pytest.approx((4.0, 6.0, 8.0))
    write_like(tmp_path / "b.nii", path, volume)
    assert nib.load(tmp_path / "b.nii").header.get_xyzt_units()[0] == "micron"
    assert np.allclose(nib.load(tmp_path / "b.nii").affine, small)


def test_a_grid_is_read_only_of_axes_along_x_y_z(volume, tmp_path):
    with pytest.raises(NiftiError, match=r"axes to LAS.*expected axes along x, y and z"):
        read_grid(save(tmp_path / "a.nii", volume))
