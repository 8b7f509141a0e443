"""The bricks into which the Legacy Surveys cut the sky.

Rows of 0.25 degrees in declination, centred on multiples of it; each row is cut in right ascension
into the smallest even number of equal bricks that are nowhere wider than 0.25 degrees. The poles
are one brick each, and there are 662174 of them. Names are ``int(10 RA)`` in four digits, ``p`` or
``m``, and ``int(10 |Dec|)`` in three, of the centre: https://www.legacysurvey.org/dr10/files,
"Tractor Catalogs".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SIZE = 0.25  # degrees
_ROWS = round(180 / SIZE)


@dataclass(frozen=True)
class Brick:
    """One brick.

    Attributes
    ----------
    name : str
        Such as ``1126p222``.
    ra, dec : float
        Its centre, degrees.
    """

    name: str
    ra: float
    dec: float

    @property
    def folder(self) -> str:
        """The whole degrees of right ascension, three digits: the folder that it is in."""
        return self.name[:3]


def brick_at(ra: float, dec: float) -> Brick:
    """Return the brick that a place belongs to.

    Parameters
    ----------
    ra, dec : float
        Degrees; ``-90 <= dec <= 90``.
    """
    row = min(max(math.floor((dec + 90) / SIZE + 0.5), 0), _ROWS)
    number = _columns(row)
    column = min(int((ra % 360) / 360 * number), number - 1)
    centre_ra, centre_dec = (column + 0.5) * 360 / number, row * SIZE - 90
    sign = "m" if centre_dec < 0 else "p"
    # A centre such as 0.3 * 10 must not become 2 for want of the last bit.
    whole_ra, whole_dec = (int(round(10 * value, 9)) for value in (centre_ra, abs(centre_dec)))
    return Brick(f"{whole_ra:04d}{sign}{whole_dec:03d}", centre_ra, centre_dec)


def _columns(row: int) -> int:
    if row in (0, _ROWS):
        return 1
    # The edge of the row that is nearer to the equator is the longer one.
    widest = max(abs(row * SIZE - 90) - SIZE / 2, 0.0)
    needed = 360 / SIZE * math.cos(math.radians(widest))
    return 2 * math.ceil(needed / 2 - 1e-9)
