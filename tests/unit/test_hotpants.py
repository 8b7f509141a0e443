"""The HOTPANTS engine: everywhere against a stand-in that holds it to the program's contract.

Where the real program is installed (on ``PATH``, or named by ``SKYDELTA_HOTPANTS``) it is run too.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from core.errors import SubtractionFailed
from core.exposure import Exposure
from core.image import Image, MaskBit
from core.pipeline import PipelineSettings, _Progress, _subtract, engine_names
from core.simulate import PairSettings
from core.stars import SourceList, StarList
from core.subtraction import hotpants
from core.subtraction.hotpants import HotpantsSettings
from core.subtraction.hotpants.command import (
    KernelPlan,
    argument_list,
    matching_gaussians,
    stamp_grid,
    supported_order,
    with_extra,
)
from core.subtraction.pair import Pair
from core.subtraction.run_hotpants import run_hotpants
from tests import hotpants_stand_in
from tests.unit.test_sfft import make_pair, star_pixels

SHAPE = (150, 190)
SCALE = 0.8
SCIENCE_FWHM, TEMPLATE_FWHM = 3.6, 2.6
SCIENCE_RMS, TEMPLATE_RMS = 3.0, 2.0
TRANSIENT = (60, 100)  # y, x
TRANSIENT_FLUX = 4000.0
ALL_PLANES = dict.fromkeys(
    ("get_convolved", "get_scaled", "get_noise", "get_kernel", "get_header"), True
)


def render(stars, fwhm, shape=SHAPE):
    sigma = fwhm / 2.35
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    data = np.zeros(shape)
    for y, x, flux in stars:
        r2 = (yy - y) ** 2 + (xx - x) ** 2
        data += flux / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)
    return data


@pytest.fixture(scope="module")
def scene():
    """Gaussian stars, the brightest far above 25,000 ADU; half of the sky's pixels negative."""
    rng = np.random.default_rng(8)
    stars = [
        (rng.uniform(20, SHAPE[0] - 20), rng.uniform(20, SHAPE[1] - 20), flux)
        for flux in (1_400_000, 40_000, *rng.uniform(3_000, 30_000, 20))
    ]
    template = render(stars, TEMPLATE_FWHM)
    science = SCALE * render(stars, SCIENCE_FWHM)
    science += render([(*TRANSIENT, TRANSIENT_FLUX)], SCIENCE_FWHM)
    science += rng.normal(0, SCIENCE_RMS, SHAPE)
    template += rng.normal(0, TEMPLATE_RMS, SHAPE)
    x, y, flux = (np.array([s[i] for s in stars]) for i in (1, 0, 2))
    ones = np.ones(len(x))
    sources = SourceList(x, y, flux, ones, ones, ones, flux, ones.astype(bool))
    clean = np.zeros(SHAPE, np.uint16)
    return Pair(
        Image(
            science.astype(np.float32), clean, np.full(SHAPE, SCIENCE_RMS**2, np.float32),
            name="science",
        ),
        Image(
            template.astype(np.float32), clean, np.full(SHAPE, TEMPLATE_RMS**2, np.float32),
            name="template",
        ),
        SCIENCE_FWHM, TEMPLATE_FWHM, StarList(sources, SCIENCE_FWHM),
    )  # fmt: skip


class StandIn:
    """The installed stand-in: how to name it, and what it was last asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.executable = folder / "hot pants;[1]"  # nothing that a shell or CFITSIO would like
        self.executable.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{hotpants_stand_in.__file__}" "$@"\n'
        )
        self.executable.chmod(0o755)
        self.temporary = folder / "temp orary[2]"
        self.temporary.mkdir()
        self._report = folder / "report.json"
        self._pids = folder / "pids"
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("STAND_IN_REPORT", str(self._report))
        monkeypatch.setenv("STAND_IN_PID", str(self._pids))

    def behave(self, mode: str) -> None:
        self._monkeypatch.setenv("STAND_IN_MODE", mode)

    @property
    def settings(self) -> HotpantsSettings:
        return HotpantsSettings(str(self.executable), temporary=str(self.temporary), deadline=60)

    @property
    def asked(self) -> dict:
        return json.loads(self._report.read_text())

    @property
    def left_behind(self) -> list[Path]:
        return list(self.temporary.iterdir())

    def processes(self) -> list[int]:
        """Those of its processes that are still there after five seconds, zombies aside."""
        pids = [int(pid) for pid in self._pids.read_text().split()]
        _soon(lambda: not any(_runs(pid) for pid in pids), seconds=5)
        return [pid for pid in pids if _runs(pid)]

    def started(self) -> bool:
        """Whether the one that hangs, and its child, have said their numbers."""
        return self._pids.exists() and len(self._pids.read_text().split()) == 2


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.delenv("STAND_IN_MODE", raising=False)
    return StandIn(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    """One run with the engine's own choices: the difference, and what the program was asked."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("STAND_IN_MODE", raising=False)
        stand_in = StandIn(tmp_path_factory.mktemp("plain"), monkeypatch)
        difference = hotpants.subtract(scene, stand_in.settings)
        return difference, stand_in.asked


def transient_flux(data, half=9):
    y, x = TRANSIENT
    return float(data[y - half : y + half + 1, x - half : x + half + 1].sum())


def with_masked(image, places, value=60_000):
    data, mask = image.data.copy(), image.mask.copy()
    for place in places:
        data[place] = value
        mask[place] |= np.uint16(MaskBit.SATURATED)
    return replace(image, data=data, mask=mask)


# --- not there -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["skydelta-no-such-program", "/no/such/hotpants"])
def test_one_clear_sentence_when_it_is_not_installed(scene, name):
    with pytest.raises(SubtractionFailed, match=r"HOTPANTS is not installed") as caught:
        hotpants.subtract(scene, HotpantsSettings(name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caught.value.retriable


def test_ladder_goes_on_without_it(scene):
    assert "hotpants" in engine_names()
    progress = _Progress(Exposure("e1", "none.fits"))
    settings = PipelineSettings(engines=("hotpants", "sfft"), hotpants="/no/such/hotpants")
    difference = _subtract(progress, scene, settings)
    assert difference.quality.engine == "sfft"
    assert any("hotpants: HOTPANTS is not installed" in note for note in progress.notes)


def test_ladder_uses_the_program_that_the_setting_names(scene, stand_in):
    progress = _Progress(Exposure("e1", "none.fits"))
    settings = PipelineSettings(engines=("hotpants",), hotpants=str(stand_in.executable))
    assert _subtract(progress, scene, settings).quality.engine == "hotpants"


# --- what it is asked ------------------------------------------------------------------------


def test_command_line(plain):
    options = plain[1]["options"]
    assert options["c"] == ["t"]
    assert options["n"] == ["i"]
    assert (options["ko"], options["bgo"]) == (["1"], ["1"])  # 18 stamps, no more
    assert (options["nrx"], options["nry"]) == (["1"], ["1"])
    sigma = np.sqrt(SCIENCE_FWHM**2 - TEMPLATE_FWHM**2) / 2.35
    count, *pairs = options["ng"]
    assert (count, pairs[::2]) == ("3", ["4", "2", "2"])
    np.testing.assert_allclose(np.float64(pairs[1::2]), sigma * np.array([0.5, 1, 2]), rtol=1e-3)
    assert int(options["r"][0]) >= 4 * sigma  # the kernel that it is to find fits in
    assert int(options["rss"][0]) > int(options["r"][0])
    assert "ig" not in options and "convvar" not in options  # noqa: PT018


def test_kernel_and_background_vary_to_second_order_where_stamps_hold_it(scene, stand_in):
    plan = KernelPlan(3, 8, matching_gaussians(TEMPLATE_FWHM, SCIENCE_FWHM))
    hotpants.subtract(scene, replace(stand_in.settings, plan=plan))
    options = stand_in.asked["options"]
    assert (options["ko"], options["bgo"]) == (["2"], ["2"])
    assert (options["nsx"], options["nsy"]) == (["5"], ["5"])


def test_no_good_pixel_is_out_of_the_valid_range(scene, plain):
    difference, asked = plain
    assert scene.science.data.max() > 50_000
    assert asked["i_out_of_range"] == 0
    assert asked["t_out_of_range"] == 0
    brightest = np.unravel_index(np.argmax(scene.science.data), SHAPE)
    assert difference.mask[brightest] == 0


def test_noise_maps_are_rms(plain):
    assert plain[1]["i_noise"][0] == pytest.approx(SCIENCE_RMS)
    assert plain[1]["t_noise"][0] == pytest.approx(TEMPLATE_RMS)


def test_noiseless_template_has_a_noise_map_of_zero(scene, stand_in):
    noiseless = replace(scene, template=replace(scene.template, variance=None))
    difference = hotpants.subtract(noiseless, stand_in.settings)
    assert stand_in.asked["t_noise"] == [0, 0]
    good = difference.mask == 0
    np.testing.assert_allclose(np.median(difference.noise[good]), SCIENCE_RMS, rtol=0.01)


def test_masks_say_for_sure_bad(scene, stand_in):
    pair = replace(
        scene,
        science=with_masked(scene.science, [np.s_[30:33, 40:44]]),
        template=with_masked(scene.template, [np.s_[100:102, 150:152]]),
    )
    hotpants.subtract(pair, stand_in.settings)
    size = SHAPE[0] * SHAPE[1]
    assert stand_in.asked["i_mask"] == {"0": size - 12, "128": 12}
    assert stand_in.asked["t_mask"] == {"0": size - 4, "128": 4}
    # no saturated value is left for a kernel to smear
    assert stand_in.asked["image_range"][1] == pytest.approx(scene.science.data.max())


def test_substamps_are_counted_from_one(scene, plain):
    stars = scene.stars.sources
    x, y = plain[1]["stars"][0]
    brightest = np.argmax(stars.flux)
    assert (x, y) == (round(stars.x[brightest]) + 1, round(stars.y[brightest]) + 1)
    assert len(plain[1]["stars"]) == len(stars)


def test_seeing_that_is_alike_gets_gaussians_of_its_own_size(caplog):
    widths = [sigma for _, sigma in matching_gaussians(3.0, 3.0)]
    np.testing.assert_allclose(widths, [0.7, 1.5, 3.0])
    assert np.isfinite([s for _, s in matching_gaussians(4.0, 3.0)]).all()
    assert matching_gaussians(2.0, 4.0)[1][1] == pytest.approx(np.sqrt(12) / 2.35)


def test_stamps_shrink_before_there_are_too_few():
    assert stamp_grid((1024, 1024), 7) == (11, 11)
    assert stamp_grid((512, 1024), 7) == (11, 6)
    assert stamp_grid((1024, 1024), 7, (2, 2)) == (6, 6)
    assert stamp_grid((300, 300), 9) == (5, 5)
    assert stamp_grid((60, 60), 9) == (1, 1)
    assert [supported_order(2, n) for n in (1, 9, 25, 400)] == [0, 1, 2, 2]
    assert supported_order(3, 400) == 3


def test_extra_overrides_removes_and_adds(scene, stand_in):
    extra = {
        "ko": np.int64(1), "-bgo": 0, "ssf": None, "okn": True, "ks": np.float32(2.5),
        "ng": [2, 4, 0.8, 2, 1.6], "v": "2",
    }  # fmt: skip
    hotpants.subtract(scene, replace(stand_in.settings, extra=extra))
    options = stand_in.asked["options"]
    assert options["ko"] == ["1"]
    assert options["bgo"] == ["0"]
    assert "ssf" not in options
    assert options["okn"] == []
    assert options["ks"] == ["2.5"]
    assert options["ng"] == ["2", "4", "0.8", "2", "1.6"]
    assert options["v"] == ["2"]


def test_several_values_may_come_in_one_string_but_a_file_name_keeps_its_spaces():
    options = with_extra({"r": ("7",)}, {"ng": "1 2 0.7", "outim": "a b.fits", "okn": False})
    assert argument_list("hp", options) == [
        "hp", "-r", "7", "-ng", "1", "2", "0.7", "-outim", "a b.fits",
    ]  # fmt: skip


def test_unknown_option_is_an_error_with_its_message(scene, stand_in):
    with pytest.raises(SubtractionFailed, match="Unknown option : -magic"):
        hotpants.subtract(scene, replace(stand_in.settings, extra={"magic": 1}))
    assert stand_in.left_behind == []


# --- what comes back -------------------------------------------------------------------------


def test_difference_in_science_adu(scene, plain):
    difference, _ = plain
    quality = difference.quality
    assert quality.engine == "hotpants"
    assert quality.convolved == "template"
    assert quality.kernel_sum == pytest.approx(SCALE, rel=2e-3)
    assert quality.stars_used == 12
    assert quality.stars_clipped == 3
    assert transient_flux(difference.data) == pytest.approx(TRANSIENT_FLUX, abs=300)
    good = difference.mask == 0
    np.testing.assert_allclose(
        (scene.science.data - difference.convolved)[good], difference.data[good], atol=0.05
    )
    centre = difference.kernel.kernel.at(95, 75)
    assert centre.sum() == pytest.approx(SCALE, rel=2e-3)
    assert centre.shape == quality.kernel_shape


def test_blurrier_template_convolves_the_science_image(scene, stand_in):
    swapped = Pair(
        scene.template, scene.science, TEMPLATE_FWHM, SCIENCE_FWHM, scene.stars
    )  # the transient is now in the template
    difference = hotpants.subtract(swapped, stand_in.settings)
    assert stand_in.asked["options"]["c"] == ["i"]
    assert stand_in.asked["options"]["n"] == ["i"]
    assert difference.quality.convolved == "science"
    assert difference.quality.kernel_sum == pytest.approx(1 / SCALE, rel=2e-3)
    assert transient_flux(difference.data) == pytest.approx(-TRANSIENT_FLUX / SCALE, abs=400)
    good = (difference.mask == 0) & far_from_the_transient()
    # what was convolved cannot be compared pixel by pixel; the template, scaled, is as it was
    expected = scene.science.data / SCALE
    np.testing.assert_allclose(difference.convolved[good], expected[good], rtol=0.01, atol=1)
    assert np.median(difference.noise[good]) == pytest.approx(
        np.sqrt(SCIENCE_RMS**2 / SCALE**2 + TEMPLATE_RMS**2 * _squares()), rel=0.01
    )


def far_from_the_transient():
    far = np.ones(SHAPE, bool)
    y, x = TRANSIENT
    far[y - 12 : y + 13, x - 12 : x + 13] = False
    return far


def _squares():
    """Sum of the squares of the normalised matching kernel."""
    sigma = np.sqrt(SCIENCE_FWHM**2 - TEMPLATE_FWHM**2) / 2.35
    return 1 / (4 * np.pi * sigma**2)


def test_noise_goes_through_the_squared_kernel(plain):
    difference, _ = plain
    good = (difference.mask == 0) & far_from_the_transient()
    expected = np.sqrt(SCIENCE_RMS**2 + SCALE**2 * TEMPLATE_RMS**2 * _squares())
    assert np.median(difference.noise[good]) == pytest.approx(expected, rel=0.005)
    np.testing.assert_allclose(difference.scaled, difference.data / difference.noise, rtol=1e-5)
    low, middle, high = np.percentile(difference.scaled[good], [15.8655, 50, 84.1345])
    assert middle == pytest.approx(0, abs=0.03)
    assert ((high - low) / 2) ** 2 == pytest.approx(1, abs=0.05)
    assert difference.correlation.kernel is not None


def test_table_that_does_not_give_the_convolved_image_is_not_believed(scene, stand_in, caplog):
    stand_in.behave("other-table")
    difference = hotpants.subtract(scene, stand_in.settings)
    assert difference.kernel.kernel is None
    assert "does not give the image" in caplog.text
    good = difference.mask == 0
    expected = np.sqrt(SCIENCE_RMS**2 + SCALE**2 * TEMPLATE_RMS**2 * _squares())
    assert np.median(difference.noise[good]) == pytest.approx(expected, rel=0.01)


def test_fill_values_never_reach_a_caller_as_data(scene, stand_in):
    stand_in.behave("nan")
    pair = replace(scene, science=with_masked(scene.science, [np.s_[30:33, 40:44]]))
    difference = hotpants.subtract(pair, stand_in.settings)
    for plane in (difference.data, difference.scaled, difference.convolved, difference.noise):
        assert np.isfinite(plane).all()
        assert not ((plane != 0) & (np.abs(plane) < 1e-20)).any()
    assert (difference.noise > 0.5 * SCIENCE_RMS).all()
    assert (difference.mask[~difference.kernel.valid] != 0).all()
    assert difference.mask[41, 51] & MaskBit.BAD  # it had no reason but that no value came
    half = difference.quality.kernel_shape[0] // 2
    assert (difference.mask[:half] & MaskBit.EDGE).all()


def test_template_defect_is_masked_as_far_as_the_kernel_reaches(scene, stand_in):
    pair = replace(scene, template=with_masked(scene.template, [np.s_[100, 150]]))
    difference = hotpants.subtract(pair, stand_in.settings)
    half = difference.quality.kernel_shape[0] // 2
    bad = (difference.mask & MaskBit.TEMPLATE_BAD) != 0
    expected = np.zeros(SHAPE, bool)
    expected[100 - half : 101 + half, 150 - half : 151 + half] = True
    np.testing.assert_array_equal(bad, expected)
    assert difference.mask[100, 150] & MaskBit.TEMPLATE_SATURATED


# --- when it goes wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("error", "ended with status 104.*could not open the named file"),
        ("crash", "ended by SIGABRT.*Mallocing"),
        ("silent", r"wrote no difference\.fits"),
        ("no-stamps", "fitted no kernel.*0 stamps built"),
    ],
)
def test_failure_has_its_last_words(scene, stand_in, mode, words):
    stand_in.behave(mode)
    with pytest.raises(SubtractionFailed, match=words) as caught:
        hotpants.subtract(scene, stand_in.settings)
    assert "\n" not in str(caught.value)
    assert stand_in.left_behind == []


def test_everything_of_it_ends_at_the_deadline(scene, stand_in):
    stand_in.behave("hang")
    started = time.monotonic()
    with pytest.raises(SubtractionFailed, match=r"its deadline of 5 s having passed.*Mallocing"):
        hotpants.subtract(scene, replace(stand_in.settings, deadline=5))
    assert time.monotonic() - started < 60  # it would sleep for 100
    assert stand_in.started()
    assert stand_in.processes() == []
    assert stand_in.left_behind == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_interruption_leaves_neither_process_nor_folder(scene, stand_in, interruption):
    stand_in.behave("hang")

    def report(line):
        assert _soon(stand_in.started)
        raise interruption

    with pytest.raises(interruption):
        hotpants.subtract(scene, replace(stand_in.settings, report=report))
    assert stand_in.processes() == []
    assert stand_in.left_behind == []


def test_control_c_while_it_computes(scene, stand_in):
    stand_in.behave("hang")

    def report(line):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    # a test run in the background of a script ignores SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            hotpants.subtract(scene, replace(stand_in.settings, report=report))
    finally:
        signal.signal(signal.SIGINT, before)
    assert stand_in.left_behind == []


LONELY = """
import sys
import numpy as np
from core.subtraction.run_hotpants import run_hotpants
image = np.random.default_rng(1).normal(0, 1, (60, 70))
run_hotpants(image, image, _exe=sys.argv[1], _tmpdir=sys.argv[2])
"""


def test_nothing_is_left_when_the_process_itself_is_killed(stand_in):
    stand_in.behave("hang")
    arguments = [sys.executable, "-c", LONELY, str(stand_in.executable), str(stand_in.temporary)]
    process = subprocess.Popen(arguments, cwd=Path(__file__).parents[2])
    try:
        assert _soon(stand_in.started, seconds=60)
        assert len(stand_in.left_behind) == 1
    finally:
        process.kill()
        process.wait()
    assert stand_in.processes() == []
    assert _soon(lambda: stand_in.left_behind == [])


def _soon(condition, seconds=10):
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return held


def test_folder_that_cannot_be_made_is_said(scene, stand_in):
    nowhere = replace(stand_in.settings, temporary=str(stand_in.temporary / "not there"))
    with pytest.raises(SubtractionFailed, match=r"files for HOTPANTS cannot be written.*not there"):
        hotpants.subtract(scene, nowhere)


def test_image_without_a_good_pixel_is_refused_before_it_runs(scene, stand_in):
    nothing = replace(scene.science, mask=np.ones(SHAPE, np.uint16))
    with pytest.raises(SubtractionFailed, match="every pixel is masked"):
        hotpants.subtract(replace(scene, science=nothing), stand_in.settings)
    assert stand_in.left_behind == []


# --- run_hotpants ----------------------------------------------------------------------------


def loose(scene, stand_in, **options):
    """Call it as an astronomer's script does."""
    arguments = {
        "err": np.sqrt(scene.science.variance), "template_err": np.sqrt(scene.template.variance),
        "image_fwhm": SCIENCE_FWHM, "template_fwhm": TEMPLATE_FWHM, "image_gain": 2.0,
        "_exe": str(stand_in.executable), "_tmpdir": str(stand_in.temporary),
    }  # fmt: skip
    return run_hotpants(scene.science.data, scene.template.data, **(arguments | options))


def test_run_hotpants_returns_a_bare_array_or_the_planes_in_the_documented_order(scene, stand_in):
    bare = loose(scene, stand_in)
    assert isinstance(bare, np.ndarray)
    difference, convolved, scaled, noise, kernel, header = loose(scene, stand_in, **ALL_PLANES)
    np.testing.assert_array_equal(difference, bare)
    good = np.isfinite(difference)
    np.testing.assert_allclose(convolved[good], (scene.science.data - bare)[good], atol=0.05)
    np.testing.assert_allclose(scaled[good], (difference / noise)[good], rtol=1e-4)
    assert np.median(noise[good]) > SCIENCE_RMS
    assert kernel.at(95, 75).sum() == pytest.approx(SCALE, rel=2e-3)
    assert header["CONVOL00"] == "TEMPLATE"
    assert transient_flux(difference) == pytest.approx(TRANSIENT_FLUX, abs=300)
    some = loose(scene, stand_in, get_noise=True, get_convolved=True)
    assert len(some) == 3
    np.testing.assert_array_equal(some[1], convolved)
    np.testing.assert_array_equal(some[2], noise)


def test_run_hotpants_follows_the_documented_rules(scene, stand_in):
    loose(scene, stand_in, nx=2, obj={"x": [10.4, 50.0], "y": [20.6, 70.0]}, extra={"ko": 1})
    options = stand_in.asked["options"]
    assert options["r"] == ["11"]  # 3 x 3.6
    assert options["rss"] == ["14"]  # 4 x 3.6
    assert (options["nrx"], options["nry"]) == (["2"], ["2"])
    assert options["ng"][:2] + options["ng"][3::2] == ["3", "6", "4", "2"]
    sigma = np.sqrt(SCIENCE_FWHM**2 - TEMPLATE_FWHM**2) / 2.35
    np.testing.assert_allclose(
        np.float64(options["ng"][2::2]), sigma * np.array([0.5, 1, 2]), rtol=1e-3
    )
    assert options["tg"] == ["1000"]
    assert options["ig"] == ["2"]
    assert options["ko"] == ["1"]
    assert stand_in.asked["stars"] == [[11, 22], [51, 71]]
    loose(scene, stand_in, nx=2, ny=1, image_fwhm=None, template_fwhm=None)
    options = stand_in.asked["options"]
    assert (options["nrx"], options["nry"]) == (["2"], ["1"])
    assert not {"r", "rss", "ng", "ssf"} & set(options)


def test_run_hotpants_leaves_the_noise_to_the_program_where_no_map_is_given(scene, stand_in):
    sky = 400.0
    science = scene.science.data + sky
    planes = run_hotpants(
        science, scene.template.data, image_gain=1.6, template_gain=1e6, image_fwhm=SCIENCE_FWHM,
        template_fwhm=TEMPLATE_FWHM, get_noise=True, _exe=str(stand_in.executable),
    )  # fmt: skip
    options = stand_in.asked["options"]
    assert options["ig"] == ["1.6"]
    assert options["tg"] == ["1000000"]
    assert not {"ini", "tni"} & set(options)
    assert np.nanmedian(planes[1]) == pytest.approx(np.sqrt(sky / 1.6), rel=0.02)


def test_run_hotpants_gives_nan_where_there_is_no_value(scene, stand_in):
    mask = np.zeros(SHAPE, bool)
    mask[30:33, 40:44] = True
    data = scene.science.data.copy()
    data[70:72, 80:82] = np.nan
    planes = run_hotpants(
        data, scene.template.data, mask, err=True, image_fwhm=SCIENCE_FWHM,
        template_fwhm=TEMPLATE_FWHM, get_scaled=True, get_noise=True, get_convolved=True,
        _exe=str(stand_in.executable),
    )  # fmt: skip
    assert "image_mask" not in stand_in.asked["options"]
    assert stand_in.asked["i_mask"]["128"] == 16
    for plane in planes:
        assert np.isnan(plane[30:33, 40:44]).all()
        assert np.isnan(plane[70:72, 80:82]).all()
        assert np.isfinite(plane[40:60, 40:60]).all()
        assert plane.dtype == np.float32


def test_workdir_keeps_the_files_and_tmpdir_does_not(scene, stand_in, tmp_path):
    kept = tmp_path / "kept [here]"
    loose(scene, stand_in, _workdir=str(kept))
    assert stand_in.asked["folder"] == str(kept)
    assert {"science.fits", "template.fits", "difference.fits"} <= {p.name for p in kept.iterdir()}
    loose(scene, stand_in)
    assert Path(stand_in.asked["folder"]).parent == stand_in.temporary
    assert stand_in.left_behind == []
    # a run that writes nothing must not be served with an earlier one's files
    stand_in.behave("silent")
    with pytest.raises(SubtractionFailed, match=r"wrote no difference\.fits"):
        loose(scene, stand_in, _workdir=str(kept))


def test_its_messages_are_in_the_log_and_go_to_a_callable(scene, stand_in, caplog):
    said = []
    loose(scene, stand_in, verbose=said.append)
    assert any("Using Kernel Sum" in line for line in said)
    with caplog.at_level(logging.INFO, logger="core.subtraction"):
        assert "Using Kernel Sum" not in caplog.text
        loose(scene, stand_in, verbose=True)
    assert "Using Kernel Sum" in caplog.text


def test_shapes_that_differ_are_an_error(scene):
    with pytest.raises(ValueError, match="differ in shape"):
        run_hotpants(scene.science.data, scene.template.data[:-1])


# --- the real program ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_program():
    name = os.environ.get("SKYDELTA_HOTPANTS", "hotpants")
    if shutil.which(name) is None:
        pytest.skip("HOTPANTS is not installed (not on PATH, nor named by SKYDELTA_HOTPANTS)")
    return name


@pytest.fixture(scope="module")
def simulated():
    settings = PairSettings(shape=(512, 640), seed=4, n_transients=10, star_density=2500)
    return make_pair(settings)


def test_real_program_on_the_scene(scene, real_program, tmp_path):
    extra = {"ft": 5}
    settings = HotpantsSettings(real_program, temporary=str(tmp_path), extra=extra)
    difference = hotpants.subtract(scene, settings)
    assert difference.quality.kernel_sum == pytest.approx(SCALE, rel=0.01)
    assert transient_flux(difference.data) == pytest.approx(TRANSIENT_FLUX, abs=500)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("regions", [(1, 1), (2, 1)])
def test_real_kernel_table_is_read_right(simulated, real_program, regions):
    truth, pair = simulated
    settings = HotpantsSettings(real_program, regions=regions, extra={"kcs": 1})
    difference = hotpants.subtract(pair, settings)
    kernel = difference.kernel.kernel
    assert len(kernel.regions) == regions[0] * regions[1]
    half = kernel.half
    rng = np.random.default_rng(1)
    convolved = pair.science.data - difference.data
    stars = pair.stars.sources
    for i in rng.choice(np.argsort(-stars.flux)[:60], 25, replace=False):
        x, y = round(stars.x[i]), round(stars.y[i])
        if not difference.kernel.valid[y, x] or pair.template.bad[y, x]:
            continue
        box = pair.template.data[y - half : y + half + 1, x - half : x + half + 1]
        value = (kernel.at(x, y)[::-1, ::-1] * box).sum()
        assert value == pytest.approx(convolved[y, x], rel=2e-3, abs=10)
    assert difference.quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.02)


def test_real_difference_is_clean(simulated, real_program):
    truth, pair = simulated
    difference = hotpants.subtract(pair, HotpantsSettings(real_program))
    use = star_pixels(truth, pair) & (difference.mask == 0)
    through = _through(truth.template_variance, difference.kernel.kernel)
    noise = np.sqrt(truth.science_variance + through)
    assert np.mean((difference.data[use] / noise[use]) ** 2) < 1.15
    assert difference.quality.sky_chi2 == pytest.approx(1, abs=0.06)
    assert difference.quality.sky_mean == pytest.approx(0, abs=0.03)
    assert difference.quality.stars_used > 20


def _through(variance, kernel):
    """Convolve with the squared kernel of the frame's centre."""
    ny, nx = kernel.shape
    return ndimage.convolve(variance, kernel.at(nx / 2, ny / 2) ** 2, mode="nearest")


def test_real_masks_and_nan_do_no_harm(simulated, real_program):
    _, pair = simulated
    science = pair.science.data.copy()
    science[200:240, 300:340] = np.nan
    mask = pair.science.bad.copy()
    mask[100:110] = True
    difference, noise = run_hotpants(
        science, pair.template.data, mask, err=True, template_err=True, image_gain=2.0,
        template_gain=20.0, image_fwhm=pair.science_fwhm, template_fwhm=pair.template_fwhm,
        get_noise=True, _exe=real_program,
    )  # fmt: skip
    for plane in (difference, noise):
        assert np.isnan(plane[200:240, 300:340]).all()
        assert np.isnan(plane[100:110]).all()
        assert not ((plane != 0) & (np.abs(plane) < 1e-25)).any()
    assert np.isfinite(difference[120:190, 60:600]).mean() > 0.97


def test_real_failure_has_its_last_words(simulated, real_program):
    _, pair = simulated
    with pytest.raises(SubtractionFailed, match="Unknown option : -magic"):
        hotpants.subtract(pair, HotpantsSettings(real_program, extra={"magic": 1}))
    empty = replace(
        pair, stars=None, template=replace(pair.template, data=np.zeros_like(pair.template.data))
    )
    with pytest.raises(SubtractionFailed, match=r"fitted no kernel|found a kernel of sum"):
        hotpants.subtract(empty, HotpantsSettings(real_program))


def test_real_program_takes_the_blurrier_template(real_program):
    settings = PairSettings(
        shape=(512, 512), seed=6, n_transients=10, star_density=2500, snr_range=(30, 50),
        science_fwhm=2.6, template_fwhm=3.6, host_fraction=0.0,
    )  # fmt: skip
    truth, pair = make_pair(settings)
    difference = hotpants.subtract(pair, HotpantsSettings(real_program))
    assert difference.quality.convolved == "science"
    assert difference.quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.02)
    assert difference.quality.sky_mean == pytest.approx(0, abs=0.03)
    ratios = []
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        box = np.s_[max(0, y - 9) : y + 10, max(0, x - 9) : x + 10]
        if not difference.mask[box].any() and difference.mask[box].size == 361:
            ratios.append(float(difference.data[box].sum()) / row["flux"])
    assert np.median(ratios) == pytest.approx(1, abs=0.15)
