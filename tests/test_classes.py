from cellmap_core.classes import ATOMS, CHALLENGE48, KNOWN, UNIONS, expand, suggest

INSTANCES = ["nuc", "ves", "endo", "lyso", "ld", "perox", "mito", "np", "mt", "cell"]


def test_the_challenges_classes():
    assert len(CHALLENGE48) == len(set(CHALLENGE48)) == 48
    assert set(CHALLENGE48) <= KNOWN
    assert set(INSTANCES) <= set(CHALLENGE48)
    assert not {"nucleo", "ribo", "cent", "vim"} & set(CHALLENGE48)


def test_unions_are_sums_of_atoms():
    for name, parts in UNIONS.items():
        assert set(parts) <= set(ATOMS), name
    assert UNIONS["mito"] == ("mito_mem", "mito_lum", "mito_ribo")
    assert set(UNIONS["np"]) < set(UNIONS["ne"]) < set(UNIONS["er"])
    assert set(UNIONS["ne"]) < set(UNIONS["nuc"]) < set(UNIONS["cell"])
    assert "ecs" not in UNIONS["cell"]


def test_sets_stand_for_their_classes():
    assert expand(["mito", "challenge48"])[:2] == ("mito", "ecs")
    assert len(expand(["challenge48", "mito"])) == 48


def test_the_nearest_names_are_told():
    assert "mito" in suggest("mitoo", sorted(KNOWN))
