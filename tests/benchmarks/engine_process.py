"""One engine on one pair, in a process of its own: planes, seconds, and peak memory.

``python engine_process.py ENGINE IN.npz OUT.npz``. It is run by our own Python for our engines and
by that of the peers' environment for theirs, so it imports only numpy before it knows the engine.
A small cut-out of the pair is subtracted first, so that nothing is compiled while the clock runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Inputs = Mapping[str, Any]
Outputs = dict[str, Any]
WARM = 384  # pixels, side of the cut-out


def ours_sfft(pair: Inputs, err: Any, template_err: Any) -> Outputs:
    from core.subtraction import run_sfft

    shape = tuple(int(n) for n in pair["kernel_shape"])
    difference, convolved, noise, scaled, kernel = run_sfft(
        pair["science"], pair["template"], pair["mask"], pair["template_mask"],
        err=err, template_err=template_err, image_gain=float(pair["gain"]),
        template_gain=float(pair["template_gain"]), kernel_shape=shape or None,
        get_convolved=True, get_noise=True, get_scaled=True, get_kernel=True,
        threads=int(pair["threads"]),
    )  # fmt: skip
    del convolved, scaled
    solution = {f"kernel_{name}": value for name, value in vars(kernel).items()}
    return {"difference": difference, "noise": noise, **solution}


def ours_with_maps(pair: Inputs) -> Outputs:
    return ours_sfft(pair, pair["err"], pair["template_err"])


def ours_with_own_kernel(pair: Inputs) -> Outputs:
    return ours_sfft({**pair, "kernel_shape": ()}, pair["err"], pair["template_err"])


def ours_without_maps(pair: Inputs) -> Outputs:
    return ours_sfft(pair, True, True)


def ours_zogy(pair: Inputs) -> Outputs:
    from core.subtraction import run_zogy

    tiles = int(pair["tiles"])
    difference, significance, _, flux, flux_err, noise, _ = run_zogy(
        pair["science"], pair["template"], pair["mask"], pair["template_mask"],
        err=pair["err"], template_err=pair["template_err"], image_gain=float(pair["gain"]),
        template_gain=float(pair["template_gain"]), dx=None, dy=None, nx=tiles, overlap=None,
        get_psf=True, get_Fpsf=True, get_noise=True, get_scaled=True,
        nthreads=int(pair["threads"]),
    )  # fmt: skip
    return {
        "difference": difference, "noise": noise, "significance": significance,
        "flux": flux, "flux_err": flux_err,
    }  # fmt: skip


def tuned_hotpants(pair: Inputs) -> Outputs:
    """HOTPANTS through our wrapper: true noise maps, a 13x13 kernel and 31x31 stamps."""
    from core.subtraction import run_hotpants

    difference, noise = run_hotpants(
        pair["science"], pair["template"], pair["mask"], pair["template_mask"],
        err=pair["err"], template_err=pair["template_err"],
        image_fwhm=float(pair["fwhm"]), template_fwhm=float(pair["template_fwhm"]),
        image_gain=float(pair["gain"]), template_gain=float(pair["template_gain"]),
        get_noise=True, extra={"r": 6, "rss": 15}, _exe=str(pair["hotpants"]),
    )  # fmt: skip
    return {"difference": difference, "noise": noise}


def wrapped_hotpants(pair: Inputs) -> Outputs:
    """HOTPANTS by the reference wrapper's defaults."""
    from stdpipe import subtraction

    difference, noise = subtraction.run_hotpants(
        pair["science"], pair["template"], mask=pair["mask"], template_mask=pair["template_mask"],
        err=True, template_err=True,
        image_fwhm=float(pair["fwhm"]), template_fwhm=float(pair["template_fwhm"]),
        image_gain=float(pair["gain"]), template_gain=float(pair["template_gain"]),
        get_noise=True, _exe=str(pair["hotpants"]),
    )  # fmt: skip
    return {"difference": difference, "noise": noise}


def stdpipe_sfft(pair: Inputs) -> Outputs:
    """As its documentation shows it; 0.4.1 returns the noise after the scaled difference."""
    from stdpipe import subtraction

    difference, _, _, noise, _ = subtraction.run_sfft(
        pair["science"], pair["template"], mask=pair["mask"], template_mask=pair["template_mask"],
        err=True, template_err=True, image_gain=float(pair["gain"]),
        template_gain=float(pair["template_gain"]),
        get_convolved=True, get_noise=True, get_scaled=True, get_kernel=True,
    )  # fmt: skip
    return {"difference": difference, "noise": noise}


def stdpipe_sfft_flat(pair: Inputs) -> Outputs:
    """The same, the median of each image removed first."""
    flat = {**pair, "science": _flat(pair, "science", "mask")}
    return stdpipe_sfft({**flat, "template": _flat(pair, "template", "template_mask")})


def stdpipe_zogy(pair: Inputs) -> Outputs:
    """With the PSFs that the same package measures without an external program."""
    from stdpipe import psf, subtraction

    planes = [_flat(pair, "science", "mask"), _flat(pair, "template", "template_mask")]
    masks = [pair["mask"], pair["template_mask"]]
    widths = [float(pair["fwhm"]), float(pair["template_fwhm"])]
    models = [
        psf.create_psf_model(plane, fwhm=fwhm, mask=mask, size=int(6 * max(widths)) | 1, degree=1)
        for plane, mask, fwhm in zip(planes, masks, widths, strict=True)
    ]
    difference, significance, _, flux, flux_err = subtraction.run_zogy(
        planes[0], planes[1], mask=masks[0], template_mask=masks[1],
        err=pair["err"].astype(float), template_err=pair["template_err"].astype(float),
        image_psf=models[0], template_psf=models[1], image_gain=float(pair["gain"]),
        template_gain=float(pair["template_gain"]), image_fwhm=widths[0], template_fwhm=widths[1],
        scale=1 / float(pair["flux_scale"]), nx=int(pair["tiles"]), get_psf=True, get_Fpsf=True,
        nthreads=int(pair["threads"]),
    )  # fmt: skip
    return {"difference": difference, "significance": significance,
            "flux": flux, "flux_err": flux_err}  # fmt: skip


def sfft_package(pair: Inputs) -> Outputs:
    """SFFT of PyPI on the CPU: whole frame, defects set to sky in both images."""
    from astropy.io import fits
    from sfft.CustomizedPacket import Customized_Packet

    bad = pair["mask"] | pair["template_mask"]
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for name, image, mask in (
            ("SCI", "science", "mask"),
            ("REF", "template", "template_mask"),
        ):
            flat = _flat(pair, image, mask)
            for prefix, plane in (("", flat), ("m", np.where(bad, 0, flat))):
                names[prefix + name] = os.path.join(folder, f"{prefix}{name}.fits")
                fits.writeto(names[prefix + name], plane.astype(np.float64))
        target = os.path.join(folder, "difference.fits")
        Customized_Packet.CP(
            FITS_REF=names["REF"], FITS_SCI=names["SCI"], FITS_mREF=names["mREF"],
            FITS_mSCI=names["mSCI"], ForceConv="REF", GKerHW=6, FITS_DIFF=target,
            KerPolyOrder=2, BGPolyOrder=2, ConstPhotRatio=True, BACKEND_4SUBTRACT="Numpy",
            NUM_CPU_THREADS_4SUBTRACT=int(pair["threads"]), VERBOSE_LEVEL=0,
        )  # fmt: skip
        return {"difference": fits.getdata(target).astype(np.float32)}


def _flat(pair: Inputs, image: str, mask: str) -> np.ndarray:
    plane = np.asarray(pair[image], dtype=float)
    return np.where(np.isfinite(plane), plane, np.nan) - np.nanmedian(plane[~pair[mask]])


ENGINES: dict[str, Callable[[Inputs], Outputs]] = {
    "run_sfft": ours_with_maps,
    "run_sfft kernel=None": ours_with_own_kernel,
    "run_sfft err=True": ours_without_maps,
    "run_zogy": ours_zogy,
    "HOTPANTS": tuned_hotpants,
    "HOTPANTS by STDPipe": wrapped_hotpants,
    "STDPipe run_sfft": stdpipe_sfft,
    "STDPipe run_sfft, no sky": stdpipe_sfft_flat,
    "STDPipe run_zogy": stdpipe_zogy,
    "SFFT 1.7": sfft_package,
}


def cut_out(pair: Inputs) -> Inputs:
    """Cut the middle out of every plane; ``kernel_shape`` and the numbers stay."""
    ny, nx = pair["science"].shape
    y0, x0 = max(0, (ny - WARM) // 2), max(0, (nx - WARM) // 2)
    box = np.s_[y0 : y0 + WARM, x0 : x0 + WARM]
    small = {
        name: np.ascontiguousarray(value[box]) if value.shape == (ny, nx) else value
        for name, value in pair.items()
    }
    return {**small, "tiles": np.array(1)}


def memory(field: str) -> float:
    """Return a line of the status of this process, GB: ``VmRSS`` now, ``VmHWM`` its peak."""
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) / 1e6 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Begin the peak anew: what was compiled while warming up is not the engine's."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def processor() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    own, theirs = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + theirs.ru_utime + theirs.ru_stime


def main() -> None:
    """Run, and write planes and ``wall``, ``cpu``, ``runs``, ``arrays_gb``, ``peak_gb``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=120, help="seconds for repeats")
    options = parser.parse_args()
    with np.load(options.source) as file:
        pair = {name: file[name] for name in file.files}
    work = ENGINES[options.engine]
    try:
        work(cut_out(pair))
    except Exception as error:  # noqa: BLE001 - peers raise what they like; the real run decides
        sys.stderr.write(f"warming up: {type(error).__name__}: {error}\n")
    forget_peak()
    arrays = memory("VmRSS")
    wall: list[float] = []
    cpu: list[float] = []
    planes: Outputs = {}
    while len(wall) < options.repeats and sum(wall) < options.patience:
        planes.clear()
        started, used = time.perf_counter(), processor()
        planes = work(pair)
        wall.append(time.perf_counter() - started)
        cpu.append(processor() - used)
    peak = memory("VmHWM")
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    np.savez(
        options.target, wall=statistics.median(wall), cpu=statistics.median(cpu), runs=len(wall),
        arrays_gb=arrays, peak_gb=max(peak, child), **planes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
