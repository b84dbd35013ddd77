"""Labels on their structures are told from shifted ones, and from what cannot be told."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from cellmap_core.alignment import Alignment, alignment
from cellmap_core.boundaries import ClassBits, boundaries, edge_strength
from cellmap_core.convert import convert
from cellmap_core.datalist import read_datalist
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.nifti import read_grid, read_volume
from cellmap_core.options import ConvertOptions
from cellmap_core.sample import Sampler

VOXEL = (8.0, 8.0, 8.0)


def judged(image, codes, states, voxel_nm=VOXEL):
    sampler = Sampler(image.shape)
    sampler.image(0, image)
    if codes is not None:
        sampler.codes(0, codes)
    states = [tuple(row) for row in np.asarray(states)]
    return alignment(sampler.planes(), states, voxel_nm, sampler.block())


def crops(result):
    """Name, image, codes, states and voxel size of each labelled crop with a class boundary."""
    datalist = read_datalist(result.datalist)
    states = datalist.table.states()
    for entry in (*datalist.training, *datalist.testing):
        if entry.label is None:
            continue
        codes = np.array(read_volume(datalist.path(entry.label)))
        if len(np.unique(codes)) > 1:
            image = np.array(read_volume(datalist.path(entry.image)))
            yield entry.name, image, codes, states, read_grid(datalist.path(entry.image)).voxel_nm


def rolled(volume, shift):
    return np.roll(volume, shift, (0, 1, 2))


def assert_found(told, shift_vox, voxel_nm, name):
    assert told.verdict == "shifted", (name, shift_vox, told)
    found = [nm / v for nm, v in zip(told.shift_nm, voxel_nm, strict=True)]
    assert np.abs(np.subtract(found, shift_vox)).max() <= 1.01, (name, shift_vox, told)


def single_shifts(*sizes):
    for size, axis, sign in itertools.product(sizes, range(3), (1, -1)):
        yield tuple(sign * size if a == axis else 0 for a in range(3))


def test_the_phantom_is_aligned_in_every_crop(converted):
    told = {name: judged(*rest).verdict for name, *rest in crops(converted)}
    assert len(told) == 6
    assert set(told.values()) == {"aligned"}, told


def test_shifts_of_the_phantom_are_found_or_called_unclear(converted):
    found = total = 0
    for name, image, codes, states, voxel in crops(converted):
        for shift in single_shifts(4, 6):
            told = judged(image, rolled(codes, shift), states, voxel)
            # A crop 40 voxels wide holds few boundaries: it may be unclear, never aligned.
            assert told.verdict != "aligned", (name, shift, told)
            if told.verdict == "shifted":
                assert_found(told, shift, voxel, name)
                found += 1
            total += 1
    assert found >= 0.85 * total


@pytest.fixture(scope="module")
def organelles():
    """Image (uint8), codes and states of round organelles with a dark membrane, 96 voxels wide."""
    random = np.random.default_rng(3)
    bodies = ndimage.gaussian_filter(random.normal(size=(96, 96, 96)), 5) > 0.012
    membrane = bodies & ~ndimage.binary_erosion(bodies, iterations=2)
    clean = np.where(membrane, 60.0, np.where(bodies, 120.0, 150.0))
    image = np.clip(ndimage.gaussian_filter(clean, 0.7) + random.normal(0, 10, clean.shape), 0, 255)
    codes = bodies.astype(np.uint16) + membrane
    return image.astype(np.uint8), codes, [(ABSENT, ABSENT), (PRESENT, ABSENT), (PRESENT, PRESENT)]


OBLIQUE = [(5, -4, 0), (0, 3, 4), (8, -6, 0), (-7, 7, 9), (0, 12, -11), (10, 9, -8)]


@pytest.mark.parametrize("shift", [*single_shifts(4, 9), *OBLIQUE])
def test_amount_and_sign_of_a_shift(organelles, shift):
    image, codes, states = organelles
    assert_found(judged(image, rolled(codes, shift), states), shift, VOXEL, "organelles")
    # Moving the image the other way is the same.
    moved = rolled(image, tuple(-s for s in shift))
    assert_found(judged(moved, codes, states), shift, VOXEL, "organelles")


def test_a_voxel_or_two_is_no_shift(organelles):
    image, codes, states = organelles
    for shift in [(0, 0, 0), (1, 0, -1), (0, 2, 0)]:
        assert judged(image, rolled(codes, shift), states).verdict == "aligned"


def test_shift_is_in_nanometres_of_each_axis(organelles):
    image, codes, states = organelles
    told = judged(image, rolled(codes, (0, 5, 0)), states, (12.0, 10.0, 6.0))
    assert told.shift_nm == (0, 50, 0)
    assert told.summary() == "labels shifted against the EM: y +50 nm"


def test_thick_sections_are_judged_in_their_plane_alone(organelles):
    image, codes, states = organelles
    told = judged(image, rolled(codes, (0, 5, 0)), states, (40.0, 4.0, 4.0))
    assert (told.verdict, told.shift_nm, told.axes) == ("shifted", (0, 20, 0), "yx")


@pytest.mark.parametrize("smoothness", [0, 1, 2, 4])
def test_noise_is_unclear(organelles, smoothness):
    _, codes, states = organelles
    for seed in range(6):
        noise = np.random.default_rng(seed).normal(size=codes.shape)
        noise = ndimage.gaussian_filter(noise, smoothness)
        image = np.clip(128 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
        assert judged(image, codes, states).verdict == "unclear"


def test_what_cannot_be_told_is_unclear(organelles):
    image, codes, states = organelles
    assert judged(np.full_like(image, 7), codes, states).verdict == "unclear"
    assert judged(image, np.full_like(codes, 1), states).verdict == "unclear"
    assert judged(image, codes[::-1, ::-1], states).verdict == "unclear"
    # One flat face beside a parallel edge: many shifts along it are as good.
    edge = np.where(np.arange(96)[:, None] < 54, 90, 160) + np.zeros((96, 1, 96))
    noisy = (edge + np.random.default_rng(0).normal(0, 8, edge.shape)).astype(np.uint8)
    face = np.zeros((96, 96, 96), np.uint8)
    face[:, 48:] = 1
    assert judged(noisy + np.zeros_like(face), face, [(ABSENT,), (PRESENT,)]).verdict == "unclear"


def test_unlabelled(organelles):
    image, codes, _ = organelles
    assert judged(image, None, []).verdict == "unlabelled"
    nothing = judged(image, codes * 0, [(UNKNOWN, UNKNOWN)])
    assert nothing == Alignment(verdict="unlabelled")


def test_what_is_known_between_the_planes_is_labelled(organelles):
    image, codes, _ = organelles
    codes = np.zeros_like(codes)
    codes[1:5, 1:5, 1:5] = 1
    assert judged(image, codes, [(UNKNOWN,), (PRESENT,)]).verdict == "unclear"


def ellipsoids(size, seed, count=8):
    """EM of ellipsoid organelles with a membrane, and where they are."""
    random = np.random.default_rng(seed)
    grid = np.indices((size,) * 3)
    distance = np.full((size,) * 3, np.inf)
    for _ in range(count):
        centre = random.uniform(0, size, (3, 1, 1, 1))
        radii = random.uniform(5, 12, (3, 1, 1, 1))
        off = (np.sqrt((((grid - centre) / radii) ** 2).sum(0)) - 1) * radii.min()
        distance = np.minimum(distance, off)
    grey = 150 - 20 * (distance < 0) - 60 * np.exp(-((distance / 1.2) ** 2))
    grey += ndimage.gaussian_filter(random.normal(size=grey.shape), 1.5) * 60
    noisy = np.clip(grey + random.normal(0, 10, grey.shape), 0, 255)
    return noisy.astype(np.uint8), (distance < 0).astype(np.uint8)


@pytest.mark.parametrize("size", [48, 56])
def test_small_crops_give_no_false_alarm(size):
    """At the ends of the reach few boundaries stay in sight, and chance is at its largest."""
    states = [(ABSENT,), (PRESENT,)]
    for seed in range(20):
        image, codes = ellipsoids(size, seed)
        assert judged(image, codes, states).verdict in {"aligned", "unclear"}, seed
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=image.shape), 1)
        grey = np.clip(128 + 30 * noise / noise.std(), 0, 255).astype(np.uint8)
        assert judged(grey, codes, states).verdict == "unclear", seed


def test_thin_crops_of_noise_are_unclear():
    states = [(ABSENT,), (PRESENT,)]
    for seed in range(10):
        _, codes = ellipsoids(96, seed)
        noise = np.random.default_rng(seed).integers(0, 256, codes.shape).astype(np.uint8)
        for depth in (1, 5, 9):
            part = slice(40, 40 + depth)
            assert judged(noise[part], codes[part], states).verdict == "unclear"


def test_labels_drawn_too_large_are_not_shifted():
    states = [(ABSENT,), (PRESENT,)]
    for seed in range(8):
        image, codes = ellipsoids(96, seed, count=12)
        for rim in (2, 4):
            large = ndimage.binary_dilation(codes, iterations=rim).astype(np.uint8)
            assert judged(image, large, states).verdict in {"aligned", "unclear"}, (seed, rim)


@pytest.mark.parametrize("unit", [1e-8, 1 / 255, 1e6])
def test_the_unit_of_the_em_does_not_matter(organelles, unit):
    image, codes, states = organelles
    assert judged(image * unit, codes, states).verdict == "aligned"


def test_where_knowledge_ends_is_no_boundary():
    codes = np.array([[0, 0, 1, 2, 3]])
    # Absent | unknown | present: the two changes next to the unknown say nothing.
    states = ClassBits([(ABSENT, ABSENT), (UNKNOWN, ABSENT), (PRESENT, ABSENT), (PRESENT, PRESENT)])
    assert boundaries(codes, states).tolist() == [[0, 0, 0, 1, 1]]


def test_many_classes_differ_in_the_last():
    row = np.zeros((2, 70), np.uint8)
    row[1, 69] = PRESENT
    states = ClassBits([tuple(r) for r in row])
    assert boundaries(np.array([[0, 1]]), states).tolist() == [[1, 1]]


def test_edges_are_where_the_image_changes_and_where_it_is_dark():
    image = np.full((40, 40), 200, np.uint8)
    image[:, 20:] = 120
    image[8, :10] = 100
    strength = edge_strength(image)
    assert strength.mean() == pytest.approx(0, abs=1e-4)
    assert min(strength[30, 19], strength[30, 20], strength[8, 4]) > 1.2
    assert abs(strength[30, 5] - strength[30, 35]) < 0.2
    assert not edge_strength(np.full((9, 9), 5, np.uint8)).any()


@pytest.fixture(scope="module", params=["8", "native"])
def real_crops(request, real_em, tmp_path_factory):
    options = ConvertOptions(
        datasplit=real_em / "datasplit.csv",
        output_dir=tmp_path_factory.mktemp("real"),
        target_spacing=request.param,
        num_fold=2,
    )
    return list(crops(convert(options)))


def test_real_em_gives_no_false_alarm(real_crops):
    told = {name: judged(*rest).verdict for name, *rest in real_crops}
    assert len(told) == 7
    assert set(told.values()) == {"aligned"}, told


def test_shifts_of_real_em_are_found(real_crops):
    for name, image, codes, states, voxel in real_crops:
        isotropic = max(voxel) < 3 * min(voxel)
        for shift in single_shifts(5):
            if shift[0] and not isotropic:
                continue
            told = judged(image, rolled(codes, shift), states, voxel)
            if not isotropic and told.verdict == "unclear":
                continue
            assert_found(told, shift, voxel, name)


def test_parts_of_real_em_give_no_false_alarm(real_crops):
    random = np.random.default_rng(5)
    for name, image, codes, states, voxel in real_crops:
        for size in (32, 64):
            low = [random.integers(0, max(1, n - size)) for n in image.shape]
            part = tuple(slice(a, a + size) for a in low)
            told = judged(image[part], codes[part], states, voxel)
            assert told.verdict in {"aligned", "unclear", "unlabelled"}, (name, part, told)
