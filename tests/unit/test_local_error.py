"""The model error of a region: where its stars leave more than noise, and only there."""

import numpy as np
import pytest

from core.image import MaskBit
from core.subtraction.local_error import COHERENT, NODES, local_model_error
from tests.unit.made_frames import add_gaussians
from tests.unit.test_finish import (  # noqa: F401
    CLEAR,
    FWHM,
    SHAPE,
    assembled,
    noise_of,
    pair_of,
    stars,
)


def local_error(data, variance, light, mask=CLEAR):
    single = (np.asarray(plane, dtype=np.float32) for plane in (data, variance, light))
    return local_model_error(*single, mask, pair_of())


def misfit(light, error=0.05):
    """Residuals in proportion to the light, towards one corner alone."""
    v, u = np.mgrid[0 : 1 : SHAPE[0] * 1j, 0 : 1 : SHAPE[1] * 1j]
    return np.where(np.minimum(u, v) > 0.65, error, 0) * light


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_error(stars, seed):  # noqa: F811
    _, _, _, light, variance = stars
    assert local_error(noise_of(variance, seed), variance, light) is None


def test_the_error_is_found_where_it_is(stars):  # noqa: F811
    _, _, _, light, variance = stars
    nodes = local_error(noise_of(variance, 2) + misfit(light), variance, light)
    assert nodes.shape == (NODES, NODES)
    assert nodes[-1, -1] == pytest.approx(COHERENT * 0.05**2, rel=0.2)
    assert not nodes[:4].any()
    assert not nodes[:, :4].any()


def test_one_variable_star_is_no_error(stars):  # noqa: F811
    x, y, flux, light, variance = stars
    changed = np.argmax(flux)
    data = noise_of(variance, 3)
    add_gaussians(data, x[changed : changed + 1], y[changed : changed + 1], 0.2 * flux.max(), FWHM)
    assert local_error(data, variance, light) is None


def test_a_region_of_which_most_has_faded_is_no_error(stars):  # noqa: F811
    _, _, _, light, variance = stars
    faded = noise_of(variance, 3) - misfit(light, 1.0)
    assert local_error(faded, variance, light) is None
    brighter = noise_of(variance, 3) + misfit(light, 0.6)
    assert local_error(brighter, variance, light) is None


def test_masked_pixels_and_empty_frames_say_nothing(stars):  # noqa: F811
    x, y, _, light, variance = stars
    data, mask = noise_of(variance, 4), CLEAR.copy()
    for i, j in zip(np.rint(y).astype(int), np.rint(x).astype(int), strict=True):
        data[i - 1 : i + 2, j - 1 : j + 2] = 1e5
        mask[i - 1 : i + 2, j - 1 : j + 2] = MaskBit.SATURATED
    assert local_error(data, variance, light, mask) is None
    assert local_error(noise_of(variance, 4), variance, np.zeros(SHAPE)) is None


def test_residuals_of_a_region_do_not_stand_out(stars):  # noqa: F811
    """A median over the frame hardly knows of them."""
    _, _, _, light, variance = stars
    data = noise_of(variance, 5) + misfit(light)
    got = assembled(data, variance, light, pair_of())
    assert got.model_error < 0.01
    corner = misfit(light) > 3 * np.sqrt(variance)
    assert (data[corner] / np.sqrt(variance[corner])).max() > 10
    assert np.abs(got.scaled[corner]).max() < 2.5
    far = np.s_[: SHAPE[0] // 3]
    usual = np.sqrt(variance + (got.model_error * light) ** 2)
    np.testing.assert_allclose(got.noise[far], usual[far], rtol=1e-4)
    assert got.star_chi2 > 1.5  # what the noise then takes in is still told
