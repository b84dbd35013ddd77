"""The algorithm, as BundleGen instantiates it."""

from cellmap_core.bundles.algo import CellmapAlgo


class SegresnetAlgo(CellmapAlgo):
    """SegResNetDS; its values come from ``cellmap_core.training.rules``."""
