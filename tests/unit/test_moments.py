"""Times of the command line."""

from datetime import UTC, datetime

import pytest

from service.moments import parse_moment

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T18:00:00Z", datetime(2026, 11, 22, 18, tzinfo=UTC)),
        ("2026-11-22T18:00", datetime(2026, 11, 22, 18, tzinfo=UTC)),
        ("2026-11-22T18:00+02:00", datetime(2026, 11, 22, 16, tzinfo=UTC)),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("90min", datetime(2026, 11, 23, 1, 30, tzinfo=UTC)),
        ("12h", datetime(2026, 11, 22, 15, tzinfo=UTC)),
        ("2 d", datetime(2026, 11, 21, 3, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 23, 1, 30, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "12", "12m", "-1h", "2026-13-01", "9" * 30 + "d"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_moment(text, NOW)
