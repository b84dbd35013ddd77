"""The algorithm, as BundleGen instantiates it."""

from cellmap_core.bundles.algo import CellmapAlgo


class DintsAlgo(CellmapAlgo):
    """Its values come from ``cellmap_core.training.rules``."""
