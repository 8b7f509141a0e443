"""The normal equations of the kernel fit against a brute-force float64 solution."""

from dataclasses import replace

import numpy as np
import pytest

from core.polynomials import degrees, terms
from core.subtraction.sfft.kernel_basis import cored_basis, delta_basis, spline_basis
from core.subtraction.sfft.kernel_model import KernelModel
from core.subtraction.sfft.normal_equations import (
    FitPlanes,
    accumulate,
    solve,
)
from core.subtraction.sfft.stamp_residuals import residuals
from core.subtraction.sfft.stamps import stamps_at

BASES = [
    delta_basis((5, 5)),
    spline_basis((15, 13), 2),
    spline_basis((17, 17), 3),
    cored_basis((9, 11), 2),
]


def smooth_modes(shape):
    """A Gaussian of half a pixel between kernel pixels, its sum over all neighbours 1."""
    y, x = np.mgrid[: shape[0], : shape[1]].reshape(2, -1)
    distance2 = (x[:, None] - x[None, :]) ** 2 + (y[:, None] - y[None, :]) ** 2
    everywhere = np.exp(-2.0 * np.arange(-9, 10) ** 2).sum() ** 2
    return np.exp(-2.0 * distance2) / everywhere


def brute_force_system(planes, stamps, weights, model):
    """One row a pixel of the design matrix, in float64, no sum shared between stamps."""
    shape = planes.target.shape
    rows, values, w = [], [], []
    noise = np.zeros((model.n_kernel, model.n_kernel))
    ky, kx = model.shape
    elements = model.elements.pixels(np.eye(model.n_coefficients)).reshape(-1, ky * kx)
    smooth = elements @ smooth_modes(model.shape) @ elements.T
    for s in range(len(stamps)):
        phi = terms(model.kernel_order, stamps.x[s], stamps.y[s], shape)
        psi = terms(model.background_order, stamps.x[s], stamps.y[s], shape)
        level = np.zeros(model.n_coefficients)
        for j, y in enumerate(range(stamps.y[s] - stamps.half, stamps.y[s] + stamps.half + 1)):
            for i, x in enumerate(range(stamps.x[s] - stamps.half, stamps.x[s] + stamps.half + 1)):
                box = np.s_[y - ky // 2 : y + ky // 2 + 1, x - kx // 2 : x + kx // 2 + 1]
                window = planes.source[box].astype(float)[::-1, ::-1].ravel()
                rows.append(np.concatenate([np.outer(phi, elements @ window).ravel(), psi]))
                values.append(float(planes.target[y, x]))
                w.append(float(weights[s, j, i]))
                level += w[-1] * 0.3
        noise += np.kron(np.outer(phi, phi), smooth * np.sqrt(np.outer(level, level)))
    design, weight = np.array(rows), np.array(w)
    matrix = design.T @ (design * weight[:, None])
    matrix[: model.n_kernel, : model.n_kernel] -= noise
    return matrix, design.T @ (weight * np.array(values)), design


@pytest.fixture(scope="module", params=BASES, ids=["delta", "two", "three", "cored"])
def small_problem(request):
    rng = np.random.default_rng(11)
    shape = (90, 110)
    source = rng.normal(0, 1, shape)
    for _ in range(30):
        y, x = rng.uniform(5, 85), rng.uniform(5, 105)
        yy, xx = np.mgrid[: shape[0], : shape[1]]
        source += rng.uniform(50, 500) * np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / 1.3**2)
    target = 1.7 * source + rng.normal(0, 1, shape) + 3
    planes = FitPlanes(
        target.astype(np.float32), source.astype(np.float32), np.full(shape, 0.3, dtype=np.float32)
    )
    stamps = stamps_at([20, 60, 80, 35, 90], [20, 30, 70, 65, 20], 6, 8, shape)
    weights = rng.uniform(0.5, 1.5, (len(stamps), 13, 13)).astype(np.float32)
    weights[0, 3, 4] = 0
    precision = rng.uniform(0, 1e6, (3, len(request.param)))
    model = KernelModel(request.param.shape, 1, 1, 0, 10.0, 1e-9, request.param, precision)
    return planes, stamps, weights, model


def test_normal_equations_agree_with_brute_force(small_problem):
    planes, stamps, weights, model = small_problem
    assert len(stamps) == 5
    equations = accumulate(planes, stamps, weights, model, threads=2)
    matrix, vector, _ = brute_force_system(planes, stamps, weights, model)
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(equations.matrix / scale, matrix / scale, atol=1e-12)
    np.testing.assert_allclose(equations.vector, vector, rtol=1e-9)


def test_solution_agrees_with_brute_force_to_a_millionth(small_problem):
    planes, stamps, weights, model = small_problem
    solution = solve(accumulate(planes, stamps, weights, model), model)
    kernel, background = solution.kernel, solution.background
    matrix, vector, design = brute_force_system(planes, stamps, weights, model)
    n, pixels = model.n_kernel, model.n_coefficients
    means = np.diag(matrix)[:n].reshape(-1, pixels).mean(axis=1)
    matrix[np.arange(n), np.arange(n)] += model.ridge * np.repeat(means, pixels)
    matrix[np.arange(n), np.arange(n)] += model.precision.ravel()
    light = model.elements.pixels(np.eye(pixels)).sum(axis=(1, 2))
    for term, degree in enumerate(degrees(model.kernel_order)):
        if degree > model.flux_order:
            block = np.s_[term * pixels : (term + 1) * pixels]
            matrix[block, block] += model.flux_penalty * means[term] * np.outer(light, light)
    expected = np.linalg.solve(matrix, vector)
    np.testing.assert_allclose(background, expected[n:], atol=1e-6 * np.abs(expected).max())
    pixelwise = model.elements.pixels(expected[:n].reshape(-1, pixels))
    np.testing.assert_allclose(kernel, pixelwise, atol=1e-6 * np.abs(pixelwise).max())
    residual, matched, _ = residuals(planes, stamps, kernel, background, model)
    predicted = (design @ expected).reshape(residual.shape)
    np.testing.assert_allclose(matched, predicted, atol=1e-5 * np.abs(predicted).max())


def test_flux_penalty_holds_the_kernel_sum_at_its_order(small_problem):
    planes, stamps, weights, model = small_problem
    equations = accumulate(planes, stamps, weights, model)
    model = replace(model, precision=None)
    free = solve(equations, replace(model, flux_penalty=0.0)).kernel
    held = solve(equations, replace(model, flux_penalty=1e6)).kernel
    assert np.abs(held.sum(axis=(1, 2))[1:]).max() < 1e-3 * np.abs(free.sum(axis=(1, 2))[1:]).max()


def test_errors_of_the_solution_are_those_of_repeated_noise(small_problem):
    planes, stamps, weights, model = small_problem
    rng = np.random.default_rng(12)
    exact = replace(planes, source_variance=None)
    sharp = replace(model, ridge=1e-12, flux_penalty=0.0, precision=None)
    weights = np.full_like(weights, 1 / 4.0)
    combination = rng.normal(size=(1, 3 * model.shape[0] * model.shape[1]))
    values = []
    for _ in range(200):
        noisy = exact.target + rng.normal(0, 2.0, exact.target.shape).astype(np.float32)
        solution = solve(accumulate(replace(exact, target=noisy), stamps, weights, sharp), sharp)
        values.append(float(combination[0] @ solution.kernel.ravel()))
    expected = float(np.sqrt(solution.variance_of(combination)[0]))
    assert np.std(values) == pytest.approx(expected, rel=0.2)
