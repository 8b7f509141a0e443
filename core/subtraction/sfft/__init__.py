"""SFFT: a spatially varying kernel from one global least-squares problem."""

from core.subtraction.sfft.engine import evaluate_flux_scale, evaluate_kernel_at, subtract
from core.subtraction.sfft.kernel_choice import choose_kernel_shape
from core.subtraction.sfft.settings import SFFTResult, SFFTSettings

__all__ = [
    "SFFTResult",
    "SFFTSettings",
    "choose_kernel_shape",
    "evaluate_flux_scale",
    "evaluate_kernel_at",
    "subtract",
]
