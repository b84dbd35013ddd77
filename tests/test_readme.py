"""The README's links and names are alive."""

import re

from cellmap_core.options import MODELS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_every_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_option_in_the_table_exists():
    for stage, options in re.findall(r"^\| `(\w+)` \|.*\| `([\w ]+)` \|$", README, re.MULTILINE):
        for option in options.split():
            assert option in MODELS[stage].model_fields, (stage, option)


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
