"""The rulers of the benchmarks, held against pairs whose scores are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.simulate import PairSettings, SimulatedPair, simulate_pair
from core.subtraction.sfft import SFFTResult
from tests.benchmarks.engine_runs import Run, missing, run_engine, write_pair
from tests.benchmarks.other_sky import OtherPSF, OtherSky, other_pair
from tests.benchmarks.robustness import Outcome, faults_of
from tests.benchmarks.subtraction_scores import (
    Planes,
    Scores,
    false_of_noise,
    noise_alone,
    score,
    true_noise,
    true_psf,
)
from tests.benchmarks.true_noise import proper_kernels, proper_noise

SKY = OtherSky(shape=(400, 400), seed=3, n_transients=25)


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    return other_pair(SKY)


def perfect(pair: SimulatedPair) -> tuple[Planes, np.ndarray]:
    """The transients on noise alone: what is left of the science image without its sky."""
    noise = np.sqrt(pair.science_variance).astype(np.float32)
    light = np.zeros(pair.science.shape)
    for row in pair.transients:
        x, y = round(row["x"]), round(row["y"])
        box = np.s_[y - 20 : y + 21, x - 20 : x + 21]
        light[box] += row["flux"] * pair.science_psf.at(
            row["x"], row["y"], 41, row["x"] - x, row["y"] - y
        )
    # the noise that was drawn, from the known expectation
    difference = (pair.science - pair.science_model + light).astype(np.float32)
    return Planes(difference, noise, np.zeros(noise.shape, dtype=bool)), noise


def test_the_second_simulator_draws_the_noise_that_it_states(pair: SimulatedPair) -> None:
    chi2 = np.mean((pair.science - pair.science_model) ** 2 / pair.science_variance)
    assert chi2 == pytest.approx(1, abs=0.02)
    chi2 = np.mean((pair.template - pair.template_model) ** 2 / pair.template_variance)
    assert chi2 == pytest.approx(1, abs=0.02)


def test_equal_seeds_of_the_second_simulator_give_equal_pairs(pair: SimulatedPair) -> None:
    assert (other_pair(SKY).science == pair.science).all()
    assert (other_pair(replace(SKY, seed=4)).science != pair.science).any()


def test_its_psf_has_unit_sum_and_the_width_that_was_asked_for() -> None:
    psf = OtherPSF.draw(np.random.default_rng(1), (500, 500), 3.6, 0.0)
    stamp = psf.at(120, 400, 201)
    assert stamp.sum() == pytest.approx(1, abs=2e-3)
    above = (psf.at(120, 400, 31) > 0.5 * stamp.max()).sum()
    assert 2 * np.sqrt(above / np.pi) == pytest.approx(3.6, abs=0.4)


def test_a_perfect_difference_gets_perfect_scores(pair: SimulatedPair) -> None:
    planes, noise = perfect(pair)
    scores = score(pair, planes, noise)
    assert scores.star_chi2 == pytest.approx(1, abs=0.05)
    assert scores.sky_chi2 == pytest.approx(1, abs=0.03)
    assert scores.false == 0
    assert scores.completeness > scores.expected - 0.05
    assert scores.flux_ratio == pytest.approx(1, abs=0.02)
    assert 0.6 < scores.pull_width < 1.4
    assert faults_of(scores, noise.size) == ()


def test_what_is_wrong_with_a_difference_shows_in_its_scores(pair: SimulatedPair) -> None:
    planes, noise = perfect(pair)
    # a tenth of all light left, and fluxes a tenth too low
    spoilt = 0.8 * planes.difference + 0.1 * (pair.science_model - 1000)
    scores = score(pair, replace(planes, difference=spoilt.astype(np.float32)), noise)
    assert scores.star_chi2 > 3
    assert scores.false > 5
    assert 0 < scores.false_wide <= scores.false
    assert scores.flux_ratio < 0.95
    faults = " ".join(faults_of(scores, noise.size))
    assert "star chi²" in faults
    assert "false" in faults
    assert "flux" in faults


@pytest.mark.parametrize("convolved", ["template", "science"])
def test_what_noise_alone_makes_false_is_counted(pair: SimulatedPair, convolved: str) -> None:
    scale = pair.flux_scale if convolved == "template" else 1 / pair.flux_scale
    kernel = np.zeros((1, 3, 3))
    kernel[0, 1, :] = scale * np.array([0.2, 0.6, 0.2])
    result = SFFTResult(kernel, np.zeros(1), 0, 0, pair.science.shape, convolved, 9, 0, 1.0, 1)
    noise = true_noise(pair, result)
    alone = noise_alone(pair, result)
    assert np.mean((alone / noise)[3:-3, 3:-3] ** 2) == pytest.approx(1, abs=0.02)
    planes = Planes(alone, noise, np.zeros(noise.shape, dtype=bool))
    assert false_of_noise(pair, planes, result, noise) == (0, 0)


def test_the_true_psf_lacks_what_lies_beyond_its_stamp(pair: SimulatedPair) -> None:
    model = true_psf(pair.science_psf, pair.science.shape, 3.6)
    inside = pair.science_psf.at(200, 200, model.size).sum()
    assert inside < 0.998
    assert model.at(200, 200).sum() == pytest.approx(inside, abs=5e-4)


def test_fluxes_of_a_plane_of_fluxes_are_taken_where_there_is_one(pair: SimulatedPair) -> None:
    planes, noise = perfect(pair)
    flux = np.full(noise.shape, 2e4, dtype=np.float32)
    with_plane = replace(planes, flux=flux, flux_err=np.full_like(flux, 5e3))
    ratio = score(pair, with_plane, noise).flux_ratio
    want = np.asarray(pair.transients["flux"])[np.asarray(pair.transients["snr"]) > 15]
    assert ratio == pytest.approx((2e4 * want).sum() / (want**2).sum(), rel=1e-6)


def test_the_true_noise_of_zogy_is_that_of_filtered_noise(pair: SimulatedPair) -> None:
    rng = np.random.default_rng(5)
    box = np.s_[100:356, 100:356]
    flat = replace(
        pair,
        science_variance=np.full(pair.science.shape, 700, np.float32),
        template_variance=np.full(pair.science.shape, 90, np.float32),
    )
    first, second = proper_kernels(flat, 200, 200)
    assert first.sum() == pytest.approx(1, abs=1e-4)
    assert second.sum() == pytest.approx(pair.flux_scale, abs=1e-4)
    n, r = (rng.normal(0, np.sqrt(v), (256, 256)) for v in (700, 90))
    fft = np.fft.fft2
    difference = np.fft.ifft2(fft(n) * fft(first, (256, 256)) - fft(r) * fft(second, (256, 256)))
    assert np.std(difference.real) == pytest.approx(proper_noise(flat)[box].mean(), rel=0.02)
    power = np.abs(fft(difference.real)) ** 2
    assert power[:, 100:156].mean() == pytest.approx(power[:, 1:30].mean(), rel=0.1)  # white


GOOD = Scores(1.0, 1.0, 1.0, 0, 0, 0.99, 0.99, 0.99, 0.99, 1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "verdict", "overall"),
    [
        (GOOD, "", "good"),
        (GOOD, "chi² too high", "rejected though good"),
        (replace(GOOD, flux_ratio=0.9), "", "SILENT BAD"),
        (replace(GOOD, false=30), "", "SILENT BAD"),
        (replace(GOOD, star_chi2=2.0), "chi² too high", "rejected"),
        (replace(GOOD, completeness=float("nan")), "", "SILENT BAD"),
        (None, "no star was found", "rejected"),
    ],
)
def test_only_what_is_bad_and_published_is_silently_bad(
    scores: Scores | None, verdict: str, overall: str
) -> None:
    faults = () if scores is None else faults_of(scores, 1024 * 1024)
    assert Outcome(scores, "", verdict, faults, 0.0).overall == overall


def test_an_engine_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    truth = simulate_pair(PairSettings(shape=(256, 256), seed=2))
    path = tmp_path / "pair.npz"
    write_pair(truth, path, threads=1)
    run = run_engine("run_sfft", path, repeats=2, deadline=300, threads=1)
    assert isinstance(run, Run), run
    assert run.runs == 2
    assert run.wall > 0
    assert run.cpu > 0
    assert 0.05 < run.arrays_gb < run.peak_gb + 1e-3 < 3
    assert run.planes["difference"].shape == (256, 256)
    assert np.median(run.planes["noise"]) > 0
    assert not list(tmp_path.glob("result*"))


def test_a_peer_that_is_not_installed_is_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYDELTA_BENCH_PYTHON", str(tmp_path / "python"))
    why = run_engine("STDPipe run_sfft", tmp_path / "pair.npz", repeats=1, deadline=9, threads=1)
    assert isinstance(why, str)
    assert str(tmp_path / "python") in why
    monkeypatch.delenv("SKYDELTA_HOTPANTS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "SKYDELTA_HOTPANTS" in (missing("HOTPANTS") or "")
    assert missing("run_zogy") is None
