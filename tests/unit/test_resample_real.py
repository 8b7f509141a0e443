"""The projection of real stars: their fluxes and places survive TPV, rotation and scale."""

from dataclasses import replace

import numpy as np
import pytest
import sep
from astropy.wcs import WCS

from core.image import Image, MaskBit
from core.reading import read_image
from core.resample import resample
from tests.shared_data import shared_data

BOX = (slice(1000, 2100), slice(900, 2000))


@pytest.fixture(scope="module")
def quadrant() -> Image:
    stem = shared_data("ztf_quadrant") / "ztf_20200924431759_000655_zr_c13_o_q3_"
    image = read_image(f"{stem}sciimg.fits.gz", mask=f"{stem}mskimg.fits.gz", max_pixels=20_000_000)
    data = np.ascontiguousarray(image.data[BOX])
    data -= sep.Background(data).back()
    return replace(image, data=data, mask=np.ascontiguousarray(image.mask[BOX]), wcs=image.wcs[BOX])


@pytest.mark.data
@pytest.mark.parametrize(("rotation", "scale"), [(1.0, 1.004), (181.0, 1.0), (90.0, 0.9)])
def test_real_stars_keep_their_flux_and_place(quadrant, rotation, scale):
    side = 1200
    ny, nx = quadrant.shape
    target = WCS(naxis=2)
    target.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    target.wcs.crval = np.asarray(quadrant.wcs.all_pix2world(nx / 2, ny / 2, 0))
    target.wcs.crpix = [side / 2, side / 2]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    target.wcs.cd = 1.0125 / 3600 * scale * np.array([[-c, s], [s, c]])
    result = resample(quadrant, target, (side, side), threads=2)

    rms = sep.Background(quadrant.data).globalrms
    stars = sep.extract(quadrant.data, 30, err=rms, mask=quadrant.mask > 0)
    stars = stars[(stars["flag"] == 0) & (stars["npix"] < 80)]
    x, y, _ = sep.winpos(quadrant.data, stars["x"], stars["y"], np.full(len(stars), 1.2))
    px, py = target.all_world2pix(*quadrant.wcs.all_pix2world(x, y, 0), 0)
    inside = (np.minimum(x, y) > 20) & (np.maximum(x, y) < 1080)
    inside &= (np.minimum(px, py) > 20) & (np.maximum(px, py) < side - 20)
    x, y, px, py = x[inside], y[inside], px[inside], py[inside]

    before, _, flag = sep.sum_circle(quadrant.data, x, y, 8.0, mask=quadrant.mask > 0, subpix=10)
    after, _, flag2 = sep.sum_circle(
        result.data, px, py, 8.0 / scale, mask=result.mask > 0, subpix=10
    )
    good = (flag == 0) & (flag2 == 0) & (before > 2000)
    assert good.sum() > 150
    # These stars have a FWHM of 2 pixels: each is sampled so coarsely that its flux ripples by half
    # a per cent, and of some hundred of them a thousandth is left.
    assert np.mean(after[good] / before[good]) == pytest.approx(1, abs=1e-3)
    assert after[good].sum() / before[good].sum() == pytest.approx(1, abs=1.5e-3)
    found_x, found_y, _ = sep.winpos(
        result.data, px[good], py[good], np.full(good.sum(), 1.2 / scale)
    )
    assert np.median(found_x - px[good]) == pytest.approx(0, abs=0.01)
    assert np.median(found_y - py[good]) == pytest.approx(0, abs=0.01)


@pytest.mark.data
def test_the_mask_of_the_real_frame_comes_along(quadrant):
    result = resample(quadrant, quadrant.wcs, quadrant.shape, offset=(0.4, 0.3))
    before = np.count_nonzero(quadrant.mask & MaskBit.SATURATED)
    after = np.count_nonzero(result.mask & MaskBit.SATURATED)
    assert before > 50
    assert before < after < 6 * before
