"""The correlated noise that convolving one of two images leaves in their difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import signal

Stamp = npt.NDArray[np.floating]


@dataclass(frozen=True)
class CorrelatedNoise:
    """Typical white noise of both images, and the kernel that one of them went through.

    Attributes
    ----------
    kernel : ndarray of float64, shape (ky, kx), or None
        Kernel at the centre of the frame; None for a difference of white noise.
    source_variance : float
        Variance of the convolved image before its convolution, ADU².
    target_variance : float
        Variance of the other, ADU².
    """

    kernel: npt.NDArray[np.float64] | None = None
    source_variance: float = 0.0
    target_variance: float = 1.0

    def factor(self, profile: Stamp) -> float:
        """Return true noise over white-noise estimate of the sum ``sum(profile * difference)``.

        The convolved image's share of the variance is ``V sum (P ** K)²`` (``**`` the
        correlation), where the per-pixel noise alone would give ``V sum K² sum P²``.
        """
        if self.kernel is None or self.source_variance <= 0:
            return 1.0
        weights = np.asarray(profile, dtype=np.float64)
        smoothed = signal.fftconvolve(weights, self.kernel[::-1, ::-1])
        own = float((weights**2).sum())
        true = self.target_variance * own + self.source_variance * float((smoothed**2).sum())
        white = (self.target_variance + self.source_variance * float((self.kernel**2).sum())) * own
        return float(np.sqrt(true / white)) if white > 0 else 1.0


def measure_correlation(
    kernel: npt.NDArray[np.float64],
    source_variance: npt.NDArray[np.float32] | None,
    target_variance: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint16],
) -> CorrelatedNoise:
    """Take the typical variances over a sample of the good pixels."""
    if source_variance is None:
        return CorrelatedNoise()
    step = max(1, int(np.sqrt(mask.size / 1e5)))
    good = mask[::step, ::step] == 0
    if not good.any():
        return CorrelatedNoise()
    return CorrelatedNoise(
        kernel,
        float(np.median(source_variance[::step, ::step][good])),
        float(np.median(target_variance[::step, ::step][good])),
    )
