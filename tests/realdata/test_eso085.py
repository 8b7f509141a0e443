"""The real null pair: whatever comes out of it is false."""

from __future__ import annotations

import pytest

from tests.realdata import eso085
from tests.shared_data import shared_data

pytestmark = pytest.mark.data


@pytest.mark.parametrize("swapped", [False, True], ids=["later minus earlier", "reversed"])
def test_null_pair_is_published_and_nearly_empty(swapped: bool) -> None:
    result = eso085.run(shared_data("eso085_null_pair"), swapped=swapped)
    assert result.outcome == "published", result.reason
    assert result.quality is not None
    # nobody gave a gain: it is estimated, and the status says so
    assert "gain" in result.facts.estimated
    assert result.quality.star_chi2 == pytest.approx(1.0, abs=0.35)
    assert result.quality.sky_chi2 == pytest.approx(1.0, abs=0.2)
    # cosmic rays and hot pixels are many; they are told from stars by their width
    assert result.counts["rejected_sharp"] >= 8
    assert len(result.candidates) <= 8
    assert all(candidate.peak_snr < 8 for candidate in result.candidates)
