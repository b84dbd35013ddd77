"""Fixtures that every room uses: the phantom, converted once, and the real EM where it is."""

import os
import sys
from pathlib import Path

import pytest

from cellmap_core.convert import convert
from cellmap_core.models import ConvertResult
from cellmap_core.options import ConvertOptions
from cellmap_core.phantom import write_phantom

ROOT = Path(__file__).resolve().parent.parent


def skip(reason):
    """Skip for want of a part, or fail where every part must be there (in CI)."""
    if os.environ.get("AUTO3DSEG_REQUIRE_ALL"):
        pytest.fail(f"required here, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Keep torch, where a test has it, from taking every core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """The phantom's datasplit.csv; read only."""
    return write_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def converted(phantom, tmp_path_factory) -> ConvertResult:
    """The phantom, converted at 8 nm; read only."""
    output = tmp_path_factory.mktemp("nifti_data")
    return convert(ConvertOptions(datasplit=phantom, output_dir=output, num_fold=2))


@pytest.fixture(scope="session")
def real_em() -> Path:
    """Real EM in CellMap layout, which is not part of the project."""
    folder = ROOT.parent / "shared" / "data" / "real_em"
    if not (folder / "datasplit.csv").is_file():
        # Not a part that can be installed: its licences keep it out of the project.
        pytest.skip("no real EM data beside the project (shared/data/real_em)")
    return folder
