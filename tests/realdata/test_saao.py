"""The real crowded series: registered, averaged, subtracted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from core.white_noise import difference_noise
from tests.realdata import saao
from tests.shared_data import shared_data

pytestmark = pytest.mark.data
SCIENCE = ("AKB13475I0018.fits.gz", "AKB13475I0060.fits.gz")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> saao.Series:
    folder = shared_data("saao_crowded_series")
    return saao.build(folder, tmp_path_factory.mktemp("saao"), n_template=4, only=SCIENCE)


def test_frames_register_and_average_to_a_deeper_template(series: saao.Series) -> None:
    assert series.failed == {}
    assert len(series.in_template) == 4
    assert [path.name for path in series.frames] == [n.replace(".gz", "") for n in SCIENCE]
    template = fits.getdata(series.template).astype(np.float32)
    mask = fits.getdata(series.template_mask) != 0
    noise = np.sqrt(np.median(fits.getdata(series.template_variance)))
    single = saao._measured(shared_data("saao_crowded_series") / series.in_template[0])
    assert noise < 0.75 * single.sky.median_rms
    # interpolation only takes from the noise between neighbouring pixels
    assert 0.6 * noise < difference_noise(template, mask) < 1.1 * noise
    assert mask.mean() < 0.15


def test_crowded_frames_subtract_cleanly(series: saao.Series) -> None:
    for frame in series.frames:
        result = saao.run(series, frame, threads=2)
        assert result.outcome == "published", result.reason
        assert result.quality is not None
        assert result.quality.star_chi2 == pytest.approx(1.05, abs=0.4)
        assert result.quality.sky_chi2 == pytest.approx(1.05, abs=0.35)
        assert np.hypot(*result.quality.shift) < 0.5
        assert len(result.candidates) <= 10


def test_a_flux_scale_that_the_other_engine_denies_is_not_published(series: saao.Series) -> None:
    """PSFs that took the stars' neighbours for sky made that of ZOGY 21 % too large."""
    good = saao.run(series, series.frames[1], threads=2).quality
    doubtful = saao.run(series, series.frames[1], threads=2, engine="zogy")
    assert good is not None
    assert doubtful.quality is not None, doubtful.reason
    assert doubtful.quality.kernel_sum == pytest.approx(good.kernel_sum, rel=0.12)
    if doubtful.outcome == "published":
        assert doubtful.quality.kernel_sum == pytest.approx(good.kernel_sum, rel=0.06)
    else:
        assert "of the flux" in doubtful.reason


def test_a_star_added_to_a_crowded_frame_is_found(series: saao.Series, tmp_path: Path) -> None:
    """Ten sources of S/N 15 on the sky's noise, on top of a field without empty sky."""
    frame = series.frames[0]
    with fits.open(frame) as hdus:
        data, header = hdus[0].data.astype(np.float32), hdus[0].header
    rng = np.random.default_rng(5)
    clean = saao.run(series, frame, threads=2)
    fwhm = clean.facts.fwhm
    assert fwhm is not None
    y, x = np.mgrid[: data.shape[0], : data.shape[1]]
    noise = 24.0  # ADU of the sky, gain 1.9
    sigma = fwhm / 2.3548
    flux = 25 * noise * np.sqrt(4 * np.pi) * sigma
    places = [(60 + 95 * (k % 5), 130 + 250 * (k // 5)) for k in range(10)]
    for px, py in places:
        light = np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2) / (2 * np.pi * sigma**2)
        data += rng.poisson(np.maximum(flux * light * 1.9, 0)).astype(np.float32) / 1.9
    changed = tmp_path / "changed.fits"
    fits.writeto(changed, data, header)
    result = saao.run(series, changed, threads=2)
    found = [any(np.hypot(c.x - px, c.y - py) < 2 for c in result.candidates) for px, py in places]
    assert sum(found) >= 8
