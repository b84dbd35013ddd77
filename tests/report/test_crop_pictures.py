"""Pictures of crops, looked at pixel by pixel."""

import io
import re
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from cellmap_core.alignment import Alignment
from cellmap_core.classes import CHALLENGE48, KNOWN
from cellmap_core.errors import CellmapError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.models import CropPicture
from cellmap_core.report import contact_sheet as contact_sheets
from cellmap_core.report.contact_sheet import contact_page, contact_sheet
from cellmap_core.report.crop_pictures import crop_picture, thumbnail
from cellmap_core.report.overlay import (
    NOBODY_KNOWS,
    NOTHING,
    PALETTE,
    colour_of,
    painted,
    shown_class,
    used_states,
)
from cellmap_core.sample import Plane, Sampler

CLASSES = ("cell", "nuc", "mito")
STATES = (
    (ABSENT, ABSENT, ABSENT),
    (PRESENT, ABSENT, ABSENT),
    (PRESENT, PRESENT, ABSENT),
    (UNKNOWN, UNKNOWN, ABSENT),
    (PRESENT, ABSENT, PRESENT),
)
VOXEL = (8.0, 8.0, 8.0)
ALIGNED = Alignment(verdict="aligned")
SHIFTED = Alignment(verdict="shifted", shift_nm=(0.0, -40.0, 8.0))
# Where crop_picture puts the first panel.
LEFT, TOP = 8, 26


def decoded(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def plane(axis, codes, grey=128):
    image = np.full(codes.shape if codes is not None else (50, 50), grey, np.uint8)
    image[0, :2] = 1, 255
    return Plane(axis=axis, index=5, start_vox=(0, 0), image=image, codes=codes)


def quadrants():
    """Codes 0 and 1 above, 3 and 2 below."""
    codes = np.zeros((50, 50), np.uint16)
    codes[:25, 25:], codes[25:, 25:], codes[25:, :25] = 1, 2, 3
    return codes


def planes(codes=None):
    codes = quadrants() if codes is None else codes
    return tuple(plane(axis, codes) for axis in range(3))


def drawn(some=None, states=STATES, classes=CLASSES, voxel=VOXEL, told=ALIGNED):
    return decoded(
        crop_picture(some or planes(), states, classes, voxel, "jrc_phantom/crop1", told)
    )


def tinted(pixel, colour):
    """Whether a pixel's hue leans to a colour: away from grey in its direction."""
    lean, wanted = pixel - pixel.mean(), np.array(colour) - np.mean(colour)
    return bool(
        lean @ wanted > 0.9 * np.linalg.norm(lean) * np.linalg.norm(wanted) and np.ptp(pixel) > 20
    )


def near(pixels, colour, tolerance=24):
    return np.abs(pixels - colour).max(axis=-1) <= tolerance


def test_each_class_has_its_colour_at_its_place():
    picture = drawn()
    height = (picture.shape[1] - 4 * LEFT) // 3
    quarter = height // 4
    at = {
        (r, c): picture[TOP + r * quarter + 2, LEFT + c * quarter + 2]
        for r in (1, 3)
        for c in (1, 3)
    }
    assert np.ptp(at[1, 1]) <= 16  # nothing is present: the EM alone
    assert tinted(at[1, 3], colour_of(0))
    assert tinted(at[3, 3], colour_of(1))
    assert np.ptp(at[3, 1]) <= 24  # unknown: grey stripes


def test_the_unknown_is_striped_and_the_absent_is_not():
    grey = (1.0, 255.0)
    pixels = painted(planes()[0], shown_class(STATES, CLASSES), grey, (100, 100))
    assert pixels[60:90, 10:40].std() > 5
    assert pixels[10:40, 10:40].std() < 1


def test_outlines_are_one_pixel_of_full_colour():
    codes = np.zeros((50, 50), np.uint16)
    codes[10:40, 20:30] = 2
    pixels = painted(plane(0, codes), shown_class(STATES, CLASSES), (1, 255), (100, 100))
    assert near(pixels[50].astype(int), colour_of(1), 0).nonzero()[0].tolist() == [40, 59]
    assert near(pixels[:, 50].astype(int), colour_of(1), 0).nonzero()[0].tolist() == [20, 79]


def test_the_class_inside_is_drawn():
    # Whatever the order asked, the nucleus lies in the cell.
    assert shown_class([(PRESENT, PRESENT)], ("cell", "nuc")).tolist() == [1]
    assert shown_class([(PRESENT, PRESENT)], ("nuc", "cell")).tolist() == [0]
    assert shown_class(STATES, CLASSES).tolist() == [NOTHING, 0, 1, NOBODY_KNOWS, 2]


def test_a_class_not_annotated_in_the_crop_makes_nothing_unknown():
    states = ((ABSENT, UNKNOWN), (PRESENT, UNKNOWN), (ABSENT, ABSENT))
    codes = np.zeros((50, 50), np.uint16)
    codes[:, 25:] = 1
    mine = used_states(states, planes(codes))
    assert shown_class(mine, ("cell", "nuc"))[:2].tolist() == [NOTHING, 0]


def test_legend_names_what_is_drawn_alone():
    def boxes(codes):
        picture = drawn(planes(codes))
        return [bool(near(picture[-30:, :], c).any()) for c in (colour_of(i) for i in range(3))]

    assert boxes(quadrants()) == [True, True, False]
    assert boxes(np.where(quadrants() == 1, 4, 0)) == [False, False, True]


def test_title_has_the_colour_of_the_verdict():
    assert near(drawn(told=SHIFTED)[:TOP], (200, 0, 0)).any()
    assert not near(drawn()[:TOP], (200, 0, 0)).any()


def test_aspect_is_that_of_the_voxels():
    # 50 rows of 40 nm and 50 columns of 8 nm: five times as high as wide.
    codes = np.full((50, 50), 1, np.uint16)
    picture = drawn(planes(codes), voxel=(40.0, 8.0, 8.0))
    tint = np.ptp(picture[TOP : TOP + 260], axis=2) > 20
    columns = tint.any(axis=0)
    starts = np.flatnonzero(np.diff(columns.astype(int)) == 1)
    stops = np.flatnonzero(np.diff(columns.astype(int)) == -1)
    sizes = [
        (int(tint[:, a + 1 : b + 1].any(axis=1).sum()), int(b - a))
        for a, b in zip(starts, stops, strict=True)
    ]
    assert sizes == [(50, 50), (250, 50), (250, 50)]


def test_size_stays_in_bounds():
    states = [tuple(int(i == c) for i in range(48)) for c in range(48)]
    codes = (np.arange(2500) % 48).reshape(50, 50).astype(np.uint16)
    picture = drawn(planes(codes), states, CHALLENGE48)
    assert picture.shape[1] <= 1100
    assert 300 <= picture.shape[0] <= 420
    wide = [plane(a, np.zeros((4, 400), np.uint16)) for a in range(3)]
    assert drawn(wide).shape[1] <= 1100


def test_unlabelled_and_blank_planes_are_drawn():
    some = [plane(axis, None, grey=0) for axis in range(3)]
    assert drawn(some, states=(), told=Alignment(verdict="unlabelled")).shape[0] > 200
    assert decoded(thumbnail(some, (), CLASSES, VOXEL)).shape == (128, 128, 3)
    empty = np.zeros((50, 50), np.uint8)
    blank = [Plane(axis=a, index=0, start_vox=(0, 0), image=empty) for a in range(3)]
    assert drawn(blank)[TOP + 5, LEFT + 5].tolist() == [0, 0, 0]


def test_the_plane_with_most_boundaries_is_shown():
    empty, full = np.zeros((50, 50), np.uint16), quadrants()
    some = [p for axis in range(3) for p in (plane(axis, empty), plane(axis, full))]
    assert np.array_equal(drawn(some), drawn())
    with pytest.raises(CellmapError, match="no plane across z"):
        drawn([p for p in some if p.axis])


def test_the_same_crop_gives_the_same_bytes():
    def draw():
        return crop_picture(planes(), STATES, CLASSES, VOXEL, "a/b", SHIFTED)

    assert draw() == draw()


def test_palette_tells_48_classes_apart():
    colours = np.array(PALETTE[:48], int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(48, dtype=int)
    assert len(set(PALETTE)) == 48
    assert apart.min() >= 30
    assert np.ptp(colours, axis=1).min() > 40


def test_pictures_of_the_phantom(converted):
    from cellmap_core.datalist import read_datalist
    from cellmap_core.nifti import read_volume

    datalist = read_datalist(converted.datalist)
    entry = next(e for e in datalist.training if e.name.endswith("crop4"))
    image = read_volume(datalist.path(entry.image))
    sampler = Sampler(image.shape)
    sampler.image(0, image)
    sampler.codes(0, read_volume(datalist.path(entry.label)))
    states = [tuple(row) for row in datalist.table.states().tolist()]
    picture = drawn(sampler.planes(), states, datalist.classes)
    nucleo = datalist.classes.index("nucleo")
    assert near(picture[TOP:270], colour_of(nucleo)).sum() > 100


def small(colour=(90, 90, 90), size=(128, 128), seed=0):
    noise = np.random.default_rng(seed).integers(-40, 40, (*size, 1))
    sink = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def test_thumbnail_fits_its_side():
    picture = decoded(thumbnail(planes(), STATES, CLASSES, (8.0, 16.0, 8.0)))
    assert picture.shape[:2] == (128, 64)
    assert near(picture, colour_of(1)).any()


def is_red(pixels):
    return near(pixels, (200, 0, 0), 60)


def test_flagged_crops_come_first_and_in_red():
    pictures = [(f"set/crop{i}", small(), i == 7) for i in range(9)]
    sheet = decoded(contact_sheet(pictures, 200_000))
    assert is_red(sheet[4:7, 10:120]).mean() > 0.5
    assert not is_red(sheet[:, 140:]).any()


def test_sheet_shrinks_until_it_fits():
    def sheet(n, limit):
        pictures = [(f"dataset/crop{i}", small(seed=i), False) for i in range(n)]
        data = contact_sheet(pictures, limit)
        assert len(data) <= limit
        return decoded(data).shape[0]

    assert sheet(40, 400_000) > sheet(40, 60_000)


def test_sheet_tells_how_many_it_shows(monkeypatch):
    notes = []
    from PIL import ImageDraw

    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, t, *a: (notes.append(t), text(self, at, t, *a)),
    )
    pictures = [(f"dataset/crop{i}", small(seed=i), False) for i in range(120)]
    assert len(contact_sheet(pictures, 40_000)) <= 40_000
    told = re.fullmatch(r"(\d+) of 120 shown", [n for n in notes if n.endswith("shown")][-1])
    assert 10 < int(told[1]) < 120
    contact_sheet(pictures[:3], 40_000, total=9)
    assert "3 of 9 shown" in notes


def test_a_name_that_is_cut_says_so():
    assert contact_sheets._fitted("crop1", 128) == "crop1"
    assert re.fullmatch(
        r"a_very_long_name\w*\.\.\.", contact_sheets._fitted("a_very_long_name" * 5, 128)
    )


def test_no_two_classes_share_a_colour():
    assert len({colour_of(i) for i in range(len(KNOWN))}) == len(KNOWN)


def test_missing_thumbnail_keeps_its_name_and_place(tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG")
    whole = tmp_path / "whole.png"
    whole.write_bytes(small((20, 200, 20)))
    pictures = [
        ("a/1", tmp_path / "none.png", False),
        ("a/2", damaged, False),
        ("a/3", whole, False),
    ]
    sheet = decoded(contact_sheet(pictures, 200_000))
    middles = [sheet[70, 4 + 64 + i * 132] for i in range(3)]
    assert [bool(near(m, (225, 225, 225))) for m in middles] == [True, True, False]


def crop_of(name, path, alignment=ALIGNED):
    path.write_bytes(small(seed=len(name)))
    return CropPicture(
        crop=name, picture=path, thumbnail=path,
        verdict=alignment.verdict, shift_nm=alignment.shift_nm,
    )  # fmt: skip


def test_page_lists_what_is_shifted_and_carries_the_sheet(tmp_path):
    pictures = [crop_of(f"jrc/crop{i}", tmp_path / f"{i}.png") for i in range(60)]
    pictures[9] = crop_of("jrc/crop9", tmp_path / "9.png", SHIFTED)
    page = contact_page(pictures, 120_000)
    assert len(page.encode()) <= 120_000
    assert "**60 crops**: 59 aligned, 1 shifted." in page
    assert "| jrc/crop9 | 0 | -40 | 8 |" in page
    assert "crop8" not in page
    (text,) = re.findall(r"\(data:image/jpeg;base64,([^)]+)\)", page)
    assert is_red(decoded(b64decode(text))[4:7, 10:60]).mean() > 0.5


def test_page_without_crops():
    assert contact_page([]) == "**0 crops**: none converted.\n"
