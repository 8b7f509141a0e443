"""The local sky leaves the proper difference and its matched filter together."""

import numpy as np
import pytest
from scipy import ndimage

from core.simulate import PairSettings
from core.subtraction.finish import FinishedPlanes
from core.subtraction.zogy import subtract
from core.subtraction.zogy.sky import remove_local_sky
from tests.prepared_pair import make_pair

NOISE = 5.0
INFORMATION = 2e-3
FLUX_ERR = 25.0


def finished(data, noise):
    noise = np.full(data.shape, noise, dtype=np.float32)
    return FinishedPlanes(data.astype(np.float32), noise, (data / noise).astype(np.float32), 1, 0)


def test_a_patch_of_sky_is_taken_from_both():
    rng = np.random.default_rng(4)
    shape = (320, 384)
    patch = np.zeros(shape)
    patch[:, 192:] = 0.3 * NOISE
    # S of a constant b is b over the variance of the sky, and the flux is S over F_S
    in_flux = patch / NOISE**2 / INFORMATION
    difference = finished(rng.normal(0, NOISE, shape) + patch, NOISE)
    fluxes = finished(in_flux, FLUX_ERR)
    information = np.full(shape, INFORMATION, dtype=np.float32)
    mask = np.zeros(shape, dtype=np.uint16)
    remove_local_sky(difference, fluxes, information, NOISE**2, mask)
    for box in (np.s_[32:-32, 32:140], np.s_[32:-32, 244:-32]):
        assert difference.scaled[box].mean() == pytest.approx(0, abs=0.03)
        assert fluxes.data[box].mean() == pytest.approx(0, abs=0.1 * in_flux.max())
    np.testing.assert_allclose(fluxes.scaled, fluxes.data / FLUX_ERR, atol=1e-5)
    np.testing.assert_allclose(difference.scaled, difference.data / NOISE, atol=1e-5)


def test_the_significance_is_of_unit_variance_beside_a_big_galaxy():
    settings = PairSettings(
        shape=(768, 768), seed=2, n_transients=0, dominating_galaxy=True, star_density=600
    )
    truth, pair = make_pair(settings)
    result = subtract(pair, threads=2)
    near = np.zeros(pair.shape, dtype=bool)
    x, y = (np.clip(np.rint(truth.stars[axis]).astype(int), 0, 767) for axis in ("x", "y"))
    near[y, x] = True
    blank = (result.mask == 0) & ~ndimage.binary_dilation(near, iterations=8)
    values = result.significance[blank]
    assert values.mean() == pytest.approx(0, abs=0.04)
    # about ten thousand independent values, at several places of a galaxy that fills the frame
    assert values.var() == pytest.approx(1, abs=0.035)
