"""Compare arrays by the norm of their difference: rounding of single elements does not count."""

import torch


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖, computed in 64 bits.

    Kernels of different CPUs and thread counts round single elements differently. The norm of
    the difference stays near the precision of the type, and shows every error that matters.
    """
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())
