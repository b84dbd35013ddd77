"""A real SLURM cluster for the tests of this folder."""

import pytest

from tests.conftest import skip
from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster():
    """The cluster, up for all tests of this folder."""
    if reason := missing():
        skip(reason)
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def undisturbed(request):
    """Leave no job, dead node or dead controller to the next test."""
    used = request.getfixturevalue("cluster") if "cluster" in request.fixturenames else None
    yield
    if used:
        used.restore()
