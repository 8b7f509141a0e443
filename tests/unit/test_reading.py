"""Reading FITS: what comes back, and that nothing unsound ever does."""

import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from core.asinh import AsinhScale
from core.errors import InputUnavailable, InvalidEvent, QualityRejected, UnusableInput
from core.exposure import Exposure
from core.image import MaskBit
from core.reading import read_exposure, read_image

LIMIT = 1_000_000


def sky(shape=(40, 50), seed=1):
    return np.random.default_rng(seed).normal(100, 5, shape).astype(np.float32)


def tan_header(**cards):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [25, 20]
    wcs.wcs.cdelt = [-2.8e-4, 2.8e-4]
    header = wcs.to_header()
    header.update(cards)
    return header


def write(path, data, header=None, **kwargs):
    fits.PrimaryHDU(data, header if header is not None else tan_header()).writeto(path, **kwargs)
    return path


def test_a_plain_file_comes_back_as_it_was_written(tmp_path):
    data = sky()
    path = write(
        tmp_path / "a.fits",
        data,
        tan_header(GAIN=1.7, RDNOISE=4.5, EXPTIME=60.0, FILTER="r", MAGZP=27.5, SATURATE=5e4),
    )
    image = read_image(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(image.data, data)
    assert image.data.dtype == np.dtype("=f4")
    assert image.data.flags.c_contiguous
    assert image.data.flags.writeable
    assert image.mask.dtype == np.uint16
    assert not image.bad.any()
    assert image.variance is None
    facts = image.facts
    assert (facts.gain, facts.read_noise, facts.exposure_time) == (1.7, 4.5, 60.0)
    assert (facts.band, facts.zero_point, facts.zero_point_origin) == ("r", 27.5, "header")
    assert facts.saturation == 5e4
    assert facts.estimated == ()
    assert image.wcs.all_pix2world(24, 19, 0) == pytest.approx([150.0, 2.0])


@pytest.mark.parametrize("packing", ["gz", "bz2", "fz", "fz.gz"])
def test_packed_files_hold_the_same_pixels(tmp_path, packing):
    data = np.round(sky()).astype(np.int16)
    header = tan_header(GAIN=2.0)
    plain = write(tmp_path / "a.fits", data, header)
    path = tmp_path / f"a.fits.{packing}"
    if packing.startswith("fz"):
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, header)]).writeto(tmp_path / "t")
        raw = (tmp_path / "t").read_bytes()
        path.write_bytes(gzip.compress(raw) if packing == "fz.gz" else raw)
    elif packing == "gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        import bz2

        path.write_bytes(bz2.compress(plain.read_bytes()))
    image = read_image(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(image.data, data)
    assert image.facts.gain == 2.0
    assert image.wcs is not None


@pytest.mark.parametrize(
    ("stored", "cards", "expected"),
    [
        (np.array([[0, 40000], [65534, 7]], np.uint16), {}, [[0, 40000], [65534, 7]]),
        (np.array([[-5, 7], [9, 11]], np.int16), {}, [[-5, 7], [9, 11]]),
        (np.array([[1, 2], [3, 4_000_000]], np.int32), {}, [[1, 2], [3, 4_000_000]]),
        (np.array([[1.5, 2], [3, 4]], np.float64), {}, [[1.5, 2], [3, 4]]),
        (np.array([[0, 255], [3, 4]], np.uint8), {}, [[0, 255], [3, 4]]),
    ],
)
def test_every_pixel_type(tmp_path, stored, cards, expected):
    path = write(tmp_path / "a.fits", stored, tan_header(**cards))
    image = read_image(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(image.data, np.array(expected, np.float32))


def test_scaled_integers_and_blank(tmp_path):
    hdu = fits.PrimaryHDU(np.array([[0, 10], [20, -99]], np.int16), tan_header())
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 3.0, -99
    path = tmp_path / "a.fits"
    # astropy would rescale; the cards must lie over the stored integers.
    raw = hdu.header.tostring().encode()
    pixels = np.array([[0, 10], [20, -99]], ">i2").tobytes()
    path.write_bytes(raw + pixels + bytes(2880 - len(pixels)))
    image = read_image(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(image.data.ravel()[:3], [3.0, 8.0, 13.0])
    assert image.mask[1, 1] == MaskBit.NO_DATA
    assert image.data[1, 1] == 8.0  # the median of the rest


def test_the_last_hdu_may_lack_its_padding(tmp_path):
    data = sky((10, 10))
    path = write(tmp_path / "a.fits", data)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - (-data.nbytes % 2880)])
    np.testing.assert_array_equal(read_image(path, max_pixels=LIMIT).data, data)


def test_nan_and_infinite_pixels_are_no_data_and_get_a_finite_value(tmp_path):
    data = sky()
    data[3, 4], data[5, 6] = np.nan, np.inf
    image = read_image(write(tmp_path / "a.fits", data), max_pixels=LIMIT)
    assert image.mask[3, 4] == image.mask[5, 6] == MaskBit.NO_DATA
    assert np.count_nonzero(image.mask) == 2
    assert image.data[3, 4] == pytest.approx(100, abs=1)


def test_separate_mask_and_weight(tmp_path):
    data = sky()
    mask = np.zeros(data.shape, np.uint8)
    mask[0, 1] = 4
    weight = np.full(data.shape, 0.04, np.float32)
    weight[2, 3] = 0
    image = read_image(
        write(tmp_path / "a.fits", data),
        mask=write(tmp_path / "m.fits", mask),
        weight=write(tmp_path / "w.fits", weight),
        max_pixels=LIMIT,
    )
    assert image.mask[0, 1] == MaskBit.BAD
    assert image.mask[2, 3] == MaskBit.NO_DATA
    assert np.count_nonzero(image.mask) == 2
    np.testing.assert_allclose(image.variance, 25.0)


def test_extensions_of_the_same_file_are_used(tmp_path):
    data, mask = sky(), np.zeros((40, 50), np.int16)
    mask[7, 7] = 1
    error = np.full(data.shape, 3.0, np.float32)
    path = tmp_path / "a.fits"
    fits.HDUList(
        [
            fits.PrimaryHDU(header=fits.Header({"EXPTIME": 30.0})),
            fits.ImageHDU(sky((8, 8)), name="THUMB"),
            fits.ImageHDU(data, tan_header(), name="SCI"),
            fits.ImageHDU(mask, name="DQ"),
            fits.ImageHDU(error, name="ERR"),
        ]
    ).writeto(path)
    image = read_image(path, max_pixels=LIMIT)
    assert image.shape == (40, 50)
    assert image.mask[7, 7] == MaskBit.BAD
    np.testing.assert_allclose(image.variance, 9.0)
    assert image.facts.exposure_time == 30.0  # inherited from the primary header


@pytest.mark.parametrize("hdu", [2, "2", "B", "b", "B,1"])
def test_the_hdu_that_was_asked_for(tmp_path, hdu):
    path = tmp_path / "a.fits"
    fits.HDUList(
        [
            fits.PrimaryHDU(),
            fits.ImageHDU(sky(seed=1), tan_header(), name="A"),
            fits.ImageHDU(sky(seed=2), tan_header(), name="B"),
        ]
    ).writeto(path)
    image = read_image(path, hdu=hdu, max_pixels=LIMIT)
    np.testing.assert_array_equal(image.data, sky(seed=2))


def test_a_mask_extension_of_another_shape_is_left_alone_with_a_note(tmp_path):
    path = tmp_path / "a.fits"
    fits.HDUList(
        [
            fits.PrimaryHDU(sky(), tan_header()),
            fits.ImageHDU(np.ones((9, 9), np.uint8), name="BPM"),
        ]
    ).writeto(path)
    image = read_image(path, max_pixels=LIMIT)
    assert not image.bad.any()
    assert "9 x 9" in image.notes[0]
    assert "50 x 40" in image.notes[0]


def test_a_separate_mask_of_another_shape_is_refused_with_both_shapes(tmp_path):
    science = write(tmp_path / "a.fits", sky())
    mask = write(tmp_path / "m.fits", np.zeros((9, 8), np.uint8))
    with pytest.raises(UnusableInput, match=r"m\.fits: .* 8 x 9, .* 50 x 40"):
        read_image(science, mask=mask, max_pixels=LIMIT)


def test_pixels_at_the_saturation_level_of_the_header(tmp_path):
    data = sky()
    data[4, 4], data[5, 5] = 1000, 999
    image = read_image(
        write(tmp_path / "a.fits", data, tan_header(SATURATE=1000)), max_pixels=LIMIT
    )
    assert image.mask[4, 4] == MaskBit.SATURATED
    assert np.count_nonzero(image.mask) == 1


def test_a_pile_up_is_taken_for_saturation(tmp_path):
    data = np.round(sky((200, 200))).astype(np.uint16)
    rng = np.random.default_rng(0)
    data[rng.integers(0, 200, 300), rng.integers(0, 200, 300)] = rng.integers(200, 60000, 300)
    data[10:16, 10:16] = 50000
    data[data > 50000] = 50000
    image = read_image(write(tmp_path / "a.fits", data), max_pixels=LIMIT)
    assert image.facts.saturation == pytest.approx(50000, rel=1e-3)
    assert image.facts.estimated == ("saturation",)
    assert (image.mask[10:16, 10:16] == MaskBit.SATURATED).all()


def test_unsaturated_stars_are_no_pile_up(tmp_path):
    yy, xx = np.mgrid[:200, :200]
    data = sky((200, 200))
    for x, y, flux in ((50, 60, 3e4), (120, 80, 5e4), (150, 150, 1e4)):
        data += flux * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / 8).astype(np.float32)
    image = read_image(write(tmp_path / "a.fits", data), max_pixels=LIMIT)
    assert image.facts.saturation is None
    assert not image.bad.any()


def test_the_event_wins_over_overrides_and_those_over_the_header(tmp_path):
    path = write(tmp_path / "a.fits", sky(), tan_header(GAIN=1.0, RDNOISE=5.0, MAGZP=25.0))
    image = read_exposure(
        Exposure(
            "e1",
            str(path),
            gain=3.0,
            zero_point=27.0,
            band="g",
            header_overrides={"GAIN": 2.0, "RDNOISE": 6.0, "CRVAL1": 10.0},
        ),
        max_pixels=LIMIT,
    )
    assert image.facts.gain == 3.0
    assert image.facts.read_noise == 6.0
    assert image.facts.band == "g"
    assert (image.facts.zero_point, image.facts.zero_point_origin) == (27.0, "event")
    assert image.wcs.all_pix2world(24, 19, 0)[0] == pytest.approx(10.0)


@pytest.mark.parametrize("cards", [{"NAXIS1": 5}, {"GAIN": "x" * 5000 + "\n"}, {"BAD\nKEY": 1}])
def test_overrides_that_are_no_cards_are_the_events_fault(tmp_path, cards):
    path = write(tmp_path / "a.fits", sky())
    with pytest.raises(InvalidEvent, match="header_overrides"):
        read_image(path, header_overrides=cards, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"MJD-OBS": 59000.0, "EXPTIME": 864.0}, 59000.005),
        ({"OBSMJD": 59000.0, "EXPTIME": 864.0}, 59000.005),
        ({"MJD-MID": 59000.0, "EXPTIME": 864.0}, 59000.0),
        ({"DATE-OBS": "2020-05-31T12:00:00.000", "EXPTIME": 864.0}, 59000.505),
        ({"DATE-OBS": "2020-05-31", "TIME-OBS": "12:00:00.5"}, 59000.5000057870),
        ({"DATE-OBS": "2020-05-31"}, None),
        ({"DATE-OBS": "yesterday", "JD": 2459000.5}, 59000.0),
    ],
)
def test_mid_exposure(tmp_path, cards, expected):
    image = read_image(write(tmp_path / "a.fits", sky(), tan_header(**cards)), max_pixels=LIMIT)
    if expected is None:
        assert image.facts.mjd_mid is None
    else:
        assert image.facts.mjd_mid == pytest.approx(expected, abs=1e-9)


def test_a_gain_of_zero_is_no_gain(tmp_path):
    image = read_image(write(tmp_path / "a.fits", sky(), tan_header(GAIN=0.0)), max_pixels=LIMIT)
    assert image.facts.gain is None
    assert "GAIN" in image.notes[0]


def test_panstarrs_asinh_pixels_become_linear(tmp_path):
    flux = sky() * 40
    soften, offset = 12.0, -3.0
    stored = 2.5 / np.log(10) * np.arcsinh((flux - offset) / (2 * soften))
    path = write(tmp_path / "a.fits", stored, tan_header(BSOFTEN=soften, BOFFSET=offset))
    np.testing.assert_allclose(read_image(path, max_pixels=LIMIT).data, flux, rtol=1e-5)


def test_a_panstarrs_variance_is_on_a_scale_of_its_own(tmp_path):
    variance = np.random.default_rng(5).uniform(10, 4000, (40, 50))
    scale = AsinhScale(offset=40.0, soften=120.0)
    header = tan_header(BSOFTEN=scale.soften, BOFFSET=scale.offset)
    noise = write(tmp_path / "a.wt.fits", scale.stored(variance), header)
    path = write(tmp_path / "a.fits", sky(), tan_header())
    image = read_image(path, variance=noise, max_pixels=LIMIT)
    np.testing.assert_allclose(image.variance, variance, rtol=1e-5)


def test_a_missing_file_may_be_retried(tmp_path):
    with pytest.raises(InputUnavailable, match=r"nothing\.fits: no such file") as caught:
        read_image(tmp_path / "nothing.fits", max_pixels=LIMIT)
    assert caught.value.retriable


@pytest.mark.parametrize("content", [b"", b"GIF89a" * 1000, b"SIMPLE  =" + b" " * 100])
def test_what_is_not_fits_is_refused(tmp_path, content):
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(UnusableInput, match=r"a\.fits"):
        read_image(path, max_pixels=LIMIT)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.97])
def test_truncated_files_are_refused(tmp_path, packed, keep):
    raw = write(tmp_path / "a.fits", sky((100, 100))).read_bytes()
    if packed:
        raw = gzip.compress(raw)
    path = tmp_path / "b.fits"
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(UnusableInput, match="truncated"):
        read_image(path, max_pixels=LIMIT)


def test_a_truncated_gzip_that_ends_between_blocks_is_refused(tmp_path):
    raw = write(tmp_path / "a.fits", sky((100, 100))).read_bytes()
    path = tmp_path / "b.fits.gz"
    path.write_bytes(gzip.compress(raw[:-5000]))  # sound gzip, short FITS
    with pytest.raises(UnusableInput, match="truncated"):
        read_image(path, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((3, 10, 10), np.float32), "3 dimensions"),
        (np.zeros(50, np.float32), "1 dimensions"),
        (None, "no image data"),
    ],
)
def test_no_image(tmp_path, data, reason):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(data).writeto(path)
    with pytest.raises(UnusableInput, match=reason):
        read_image(path, max_pixels=LIMIT)


def header_only(path, *cards, packed=False):
    text = "".join(f"{card:<80}" for card in (*cards, "END"))
    raw = text.ljust(-(-len(text) // 2880) * 2880).encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    return path


def test_zero_size(tmp_path):
    path = header_only(
        tmp_path / "a.fits", "SIMPLE  = T", "BITPIX  = -32", "NAXIS   = 2", "NAXIS1  = 0",
        "NAXIS2  = 10",
    )  # fmt: skip
    with pytest.raises(UnusableInput, match="zero size"):
        read_image(path, max_pixels=LIMIT)


@pytest.mark.parametrize("packed", [False, True])
def test_too_large_is_told_from_the_header_without_allocating(tmp_path, packed):
    # A sparse file of the right length stands for the pixels; inflated it would be 400 GB.
    path = header_only(
        tmp_path / "a.fits",
        "SIMPLE  = T",
        "BITPIX  = -32",
        "NAXIS   = 2",
        "NAXIS1  = 2000",
        "NAXIS2  = 2000",
        packed=packed,
    )
    raw = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()) + bytes(16_001_280)
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    with pytest.raises(UnusableInput, match="2000 x 2000 pixels, more than the limit of 1000000"):
        read_image(path, max_pixels=LIMIT)


def test_too_large_and_tile_compressed(tmp_path):
    data = np.zeros((1100, 1000), np.int16)
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, tan_header())]).writeto(path)
    with pytest.raises(UnusableInput, match="1000 x 1100 pixels, more than the limit"):
        read_image(path, max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        (("NAXIS1  = 'wide'", "NAXIS2  = 5"), "NAXIS1 is not a whole number"),
        (("NAXIS1  = -7", "NAXIS2  = 5"), "negative"),
        (("NAXIS1  = 5",), "NAXIS2 is not a whole number"),
        (("NAXIS1  = 99999999999999999999", "NAXIS2  = 5"), "truncated"),
    ],
)
def test_headers_that_lie(tmp_path, cards, reason):
    path = header_only(tmp_path / "a.fits", "SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", *cards)
    with pytest.raises(UnusableInput, match=reason):
        read_image(path, max_pixels=LIMIT)


def test_no_wcs(tmp_path):
    path = write(tmp_path / "a.fits", sky(), fits.Header())
    with pytest.raises(UnusableInput, match="no celestial WCS"):
        read_image(path, max_pixels=LIMIT)
    assert read_image(path, need_wcs=False, max_pixels=LIMIT).wcs is None


def test_a_singular_wcs(tmp_path):
    path = write(tmp_path / "a.fits", sky(), tan_header(CDELT1=0.0))
    with pytest.raises(UnusableInput, match="WCS"):
        read_image(path, max_pixels=LIMIT)
    assert read_image(path, need_wcs=False, max_pixels=LIMIT).wcs is None


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "every pixel is NaN"), (7.0, "is constant")]
)
def test_nothing_in_the_pixels(tmp_path, value, reason):
    path = write(tmp_path / "a.fits", np.full((20, 20), value, np.float32))
    with pytest.raises(QualityRejected, match=reason):
        read_image(path, max_pixels=LIMIT)


def test_everything_masked(tmp_path):
    science = write(tmp_path / "a.fits", sky())
    mask = write(tmp_path / "m.fits", np.ones((40, 50), np.uint8))
    with pytest.raises(QualityRejected, match="every pixel is masked"):
        read_image(science, mask=mask, max_pixels=LIMIT)


def test_reading_is_silent(tmp_path):
    path = write(tmp_path / "a.fits", sky(), tan_header(RADECSYS="FK5", **{"DATE-OBS": "2020/1/1"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path, max_pixels=LIMIT)


@pytest.mark.parametrize(("card", "sound"), [("PCOUNT  = 1", True), ("GCOUNT  = 0", False)])
def test_counts_that_do_not_belong_to_images(tmp_path, card, sound):
    path = header_only(
        tmp_path / "a.fits", "SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 2",
        "NAXIS2  = 2", card,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + bytes([1, 2, 3, 4, 5]))
    if sound:
        image = read_image(path, need_wcs=False, max_pixels=LIMIT)
        assert image.data.tolist() == [[1, 2], [3, 4]]
    else:
        with pytest.raises(UnusableInput, match="GCOUNT"):
            read_image(path, need_wcs=False, max_pixels=LIMIT)
