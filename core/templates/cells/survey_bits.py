"""The mask bits of a survey by name, and which of them make a pixel unusable as template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.image import MaskBit, MaskImage

Bits = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SurveyBits:
    """What the bits of a survey's masks mean.

    Attributes
    ----------
    values : mapping of str to int
        Name of each bit and its value; several names may share a value.
    flags : mapping of str to MaskBit
        The bits that make a pixel unusable, and as what. The others are no defects.
    uncovered : int
        What is written where the survey has nothing.
    """

    values: Mapping[str, int]
    flags: Mapping[str, MaskBit]
    uncovered: int

    def __post_init__(self) -> None:
        unknown = set(self.flags) - set(self.values)
        if unknown:
            raise ValueError(f"no such bits: {', '.join(sorted(unknown))}")

    def value_of(self, *names: str) -> int:
        """Return several bits together."""
        value = 0
        for name in names:
            value |= self.values[name]
        return value

    def names_of(self, value: int) -> tuple[str, ...]:
        """Return the names of the bits that are set."""
        return tuple(name for name, bit in self.values.items() if value & bit)

    def decoded(self, bits: Bits) -> MaskImage:
        """Return the flags of a mask.

        Parameters
        ----------
        bits : ndarray of int32, shape (ny, nx)

        Returns
        -------
        ndarray of uint16, shape (ny, nx)
            `MaskBit` flags.
        """
        mask = np.zeros(bits.shape, np.uint16)
        for flag in set(self.flags.values()):
            value = self.value_of(*(name for name, theirs in self.flags.items() if theirs == flag))
            mask[(bits & value) != 0] |= np.uint16(flag)
        return mask


PANSTARRS = SurveyBits(
    # "PS1 Pixel flags in Image Table Data"; DETECTOR and MARK as the masks' own headers name them.
    # https://outerspace.stsci.edu/display/PANSTARRS/PS1+Pixel+flags+in+Image+Table+Data
    values={
        "DETECTOR": 0x0001,
        "FLAT": 0x0002,
        "DARK": 0x0004,
        "BLANK": 0x0008,
        "CTE": 0x0010,
        "SAT": 0x0020,
        "LOW": 0x0040,
        "SUSPECT": 0x0080,
        "BURNTOOL": 0x0080,
        "CR": 0x0100,
        "SPIKE": 0x0200,
        "GHOST": 0x0400,
        "STREAK": 0x0800,
        "STARCORE": 0x1000,
        "CONV.BAD": 0x2000,
        "CONV.POOR": 0x4000,
        "MARK": 0x8000,
    },
    # The survey's own MASK.VALUE is 8575: all up to LOW, CR and CONV.BAD. We add the light that is
    # in the template and not in the sky (GHOST, STREAK) or not in the same place (SPIKE: they turn
    # with the camera). Not masked: SUSPECT and BURNTOOL (repaired, and given less weight in the
    # stack), CONV.POOR (a small part of the light was missing), MARK (the pipeline's own), and
    # STARCORE, which is put on every bright star, saturated or not; whether one is, SAT tells.
    flags={
        "DETECTOR": MaskBit.BAD,
        "FLAT": MaskBit.BAD,
        "DARK": MaskBit.BAD,
        "BLANK": MaskBit.NO_DATA,
        "CTE": MaskBit.BAD,
        "SAT": MaskBit.SATURATED,
        "LOW": MaskBit.BAD,
        "CR": MaskBit.COSMIC_RAY,
        "SPIKE": MaskBit.BAD,
        "GHOST": MaskBit.BAD,
        "STREAK": MaskBit.BAD,
        "CONV.BAD": MaskBit.BAD,
    },
    uncovered=0x0008,
)

_LEGACY_SURVEY = {
    # "DR10 bitmasks", MASKBITS: https://www.legacysurvey.org/dr10/bitmasks (DR9: the first 14)
    "NPRIMARY": 1 << 0,
    "BRIGHT": 1 << 1,
    "SATUR_G": 1 << 2,
    "SATUR_R": 1 << 3,
    "SATUR_Z": 1 << 4,
    "ALLMASK_G": 1 << 5,
    "ALLMASK_R": 1 << 6,
    "ALLMASK_Z": 1 << 7,
    "WISEM1": 1 << 8,
    "WISEM2": 1 << 9,
    "BAILOUT": 1 << 10,
    "MEDIUM": 1 << 11,
    "GALAXY": 1 << 12,
    "CLUSTER": 1 << 13,
    "SATUR_I": 1 << 14,
    "ALLMASK_I": 1 << 15,
    "SUB_BLOB": 1 << 16,
}


def legacy_survey_bits(band: str) -> SurveyBits:
    """Return the MASKBITS of the Legacy Surveys as they concern one band.

    Masked are pixels that were saturated in any exposure of the band (SATUR), and those that were
    bad in all of them (ALLMASK; so are pixels outside the survey). The other bits tell of bright
    stars, galaxies and fits of the catalogue, or of other bands; the pixels are sound. NPRIMARY
    belongs to a neighbouring brick as well, and is as good there.

    Parameters
    ----------
    band : str
        ``g``, ``r``, ``i`` or ``z``.
    """
    saturated, bad = f"SATUR_{band.upper()}", f"ALLMASK_{band.upper()}"
    return SurveyBits(
        values=_LEGACY_SURVEY,
        flags={saturated: MaskBit.SATURATED, bad: MaskBit.BAD},
        uncovered=_LEGACY_SURVEY[bad],
    )
