"""The direction of imports, and what the light modules may not load."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ROOMS = {"cellmap_core", "tasks", "flows", "deployments"}
ALLOWED = {
    "cellmap_core": set(),
    "tasks": {"cellmap_core"},
    "flows": {"cellmap_core", "tasks"},
    "deployments": {"cellmap_core"},
}
LIGHT = [
    "cellmap_core.convert",
    "cellmap_core.datastats.analyze",
    "cellmap_core.bundles.names",
    "cellmap_core.command_line",
    "cellmap_core.work",
    "cellmap_core.training.launch",
    "cellmap_core.cluster.check",
    "deployments.doctor",
    "deployments.flow_job",
    "deployments.local",
    "deployments.slurm_worker",
    "flows.full",
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_only_downwards(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops & ROOMS <= ALLOWED[room] | {room}, path


def test_the_library_knows_nothing_of_prefect():
    for path in (ROOT / "cellmap_core").rglob("*.py"):
        assert not {n for n in imported(path) if n.split(".")[0].startswith("prefect")}, path


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_neither_torch_nor_monai(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
