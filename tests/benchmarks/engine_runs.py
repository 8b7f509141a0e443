"""Running the engines, ours and the peers', each in a fresh process, and what came back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.simulate import SimulatedPair
from tests.benchmarks.engine_process import ENGINES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("engine_process.py")
OURS = ("run_sfft", "run_sfft kernel=None", "run_sfft err=True", "run_zogy", "HOTPANTS")
OF_HOTPANTS = ("HOTPANTS", "HOTPANTS by STDPipe")


@dataclass(frozen=True)
class Run:
    """What an engine made of a pair; seconds are medians of ``runs``.

    Attributes
    ----------
    planes : dict of str to ndarray
        ``difference`` and what else there is.
    wall, cpu : float
        Seconds; the latter with those of programs that it started.
    arrays_gb, peak_gb : float
        Memory with the pair and the code loaded, and at its highest.
    runs : int
    """

    planes: dict[str, np.ndarray]
    wall: float
    cpu: float
    arrays_gb: float
    peak_gb: float
    runs: int


def peer_python() -> Path:
    """Return the Python of the peers' environment, whether or not it is there."""
    return Path(os.environ.get("SKYDELTA_BENCH_PYTHON") or ROOT / ".venv-bench" / "bin" / "python")


def hotpants_program() -> str | None:
    """Return the user's HOTPANTS program, None where there is none."""
    return os.environ.get("SKYDELTA_HOTPANTS") or shutil.which("hotpants")


def missing(engine: str) -> str | None:
    """Say why an engine cannot run here; None when it can."""
    if engine in OF_HOTPANTS and hotpants_program() is None:
        return "no hotpants on the PATH and no SKYDELTA_HOTPANTS"
    if engine in OURS:
        return None
    if not peer_python().is_file():
        return f"no {peer_python()}: make bench makes it"
    module = "sfft.CustomizedPacket" if engine.startswith("SFFT") else "stdpipe.subtraction"
    tried = subprocess.run(
        [peer_python(), "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else None


def write_pair(truth: SimulatedPair, path: Path, *, threads: int) -> None:
    """Write the arrays that every engine is given, the true noise maps among them."""
    settings = truth.settings
    small = settings.science_fwhm < settings.template_fwhm
    wide = small or settings.science_fwhm > 4
    np.savez(
        path,
        science=truth.science, template=truth.template,
        mask=truth.science_mask != 0, template_mask=truth.template_mask != 0,
        err=np.sqrt(truth.science_variance), template_err=np.sqrt(truth.template_variance),
        gain=settings.gain, template_gain=settings.gain * settings.template_depth,
        fwhm=settings.science_fwhm, template_fwhm=settings.template_fwhm,
        flux_scale=truth.flux_scale, threads=threads,
        tiles=max(2, round(max(settings.shape) / 1024)),
        kernel_shape=np.array([] if wide else [13, 13]), hotpants=hotpants_program() or "",
    )  # fmt: skip


def run_engine(
    engine: str, pair: Path, *, repeats: int, deadline: float, threads: int
) -> Run | str:
    """Run an engine on the pair of a file.

    Returns
    -------
    Run or str
        Or why there is none: what is not installed, the last line of the error, or the deadline.
    """
    if engine not in ENGINES:
        raise ValueError(f"no engine {engine!r}; there are {', '.join(ENGINES)}")
    why = missing(engine)
    if why is not None:
        return why
    python = sys.executable if engine in OURS else str(peer_python())
    target = pair.with_name("result.npz")
    one = {"OMP_NUM_THREADS": "1"} if engine in OURS else {"OMP_NUM_THREADS": str(threads)}
    environment = {
        **os.environ, **one, "NUMBA_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    # peers write their caches and their news beside themselves or to the screen
    try:
        done = subprocess.run(
            [python, SCRIPT, engine, pair, target, "--repeats", str(repeats)],
            capture_output=True, text=True, check=False, timeout=deadline, env=environment,
            cwd=pair.parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"longer than {deadline:.0f} s"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return said[-1].removeprefix("core.errors.") if said else f"status {done.returncode}"
    with np.load(target) as file:
        read = {name: file[name] for name in file.files}
    target.unlink()
    numbers = {name: float(read.pop(name)) for name in ("wall", "cpu", "arrays_gb", "peak_gb")}
    return Run(read, runs=int(read.pop("runs")), **numbers)
