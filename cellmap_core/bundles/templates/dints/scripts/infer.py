"""Predict with this bundle's best model, as MONAI's AlgoEnsemble asks for it."""

from cellmap_core.inference.inferer import InferClass

__all__ = ["InferClass"]
