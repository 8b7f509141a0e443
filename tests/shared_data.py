"""The real images, packets and catalogues that some tests read; they are not in the repository."""

import os
from pathlib import Path

import pytest

VARIABLE = "SKYDELTA_SHARED_DATA"


def shared_data(folder: str) -> Path:
    """Return a folder of the shared data, or skip the test that asks.

    The data lie in ``$SKYDELTA_SHARED_DATA``, else in ``../shared/data`` beside the repository.

    Parameters
    ----------
    folder : str
        Its name, such as ``"ztf_quadrant"``.
    """
    given = os.environ.get(VARIABLE)
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    path = root / folder
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}: set {VARIABLE} to the folder that holds {folder!r}")
    return path
