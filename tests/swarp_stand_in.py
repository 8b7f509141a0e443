"""A program that takes SWarp's place in tests, by what SWarp documents of itself.

It knows the documented parameters of version 2.41.5, reads the output grid from the ``.head``
file, takes the nearest pixel of each input and averages them. ``STAND_IN_MODE`` makes it misbehave.
It imports nothing of skydelta: an error made on both sides would hide.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

DOCUMENTED = frozenset(
    """
    IMAGEOUT_NAME WEIGHTOUT_NAME HEADEROUT_NAME HEADER_NAME HEADER_ONLY HEADER_SUFFIX
    TILE_COMPRESS WEIGHT_TYPE RESCALE_WEIGHTS WEIGHT_SUFFIX WEIGHT_IMAGE WEIGHT_THRESH COMBINE
    COMBINE_TYPE CLIP_AMPFRAC CLIP_SIGMA CLIP_WRITELOG CLIP_LOGNAME BLANK_BADPIXELS CELESTIAL_TYPE
    PROJECTION_TYPE PROJECTION_ERR CENTER_TYPE CENTER PIXELSCALE_TYPE PIXEL_SCALE IMAGE_SIZE
    RESAMPLE RESAMPLE_DIR RESAMPLE_SUFFIX RESAMPLING_TYPE OVERSAMPLING INTERPOLATE FSCALASTRO_TYPE
    FSCALE_KEYWORD FSCALE_DEFAULT GAIN_KEYWORD GAIN_DEFAULT SATLEV_KEYWORD SATLEV_DEFAULT
    SUBTRACT_BACK BACK_TYPE BACK_DEFAULT BACK_SIZE BACK_FILTERSIZE BACK_FILTTHRESH VMEM_DIR
    VMEM_MAX MEM_MAX COMBINE_BUFSIZE DELETE_TMPFILES COPY_KEYWORDS WRITE_FILEINFO WRITE_XML
    XML_NAME XSL_URL VERBOSE_TYPE NNODES NODE_INDEX NTHREADS NOPENFILES_MAX
    """.split()  # noqa: SIM905
)


def main(arguments):
    """Run as SWarp would."""
    mode = os.environ.get("STAND_IN_MODE", "")
    if mode == "fail":
        sys.stdout.write("> Initialising\n> *Error*: not enough memory\n")
        return 1
    if mode == "sleep":
        time.sleep(60)
    if mode == "silent":
        return 0
    names, given = [], {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-c":
            Path(rest.pop(0)).read_text()
        elif word.startswith("-"):
            given[word[1:]] = rest.pop(0)
        else:
            names.append(word)
    unknown = set(given) - DOCUMENTED
    if unknown or not names:
        sys.stdout.write(f"> *Error*: unknown keyword {sorted(unknown)}\n")
        return 1
    report = os.environ.get("STAND_IN_REPORT")
    if report:
        Path(report).write_text(json.dumps({"names": names, "parameters": given}))
    output = Path(given["IMAGEOUT_NAME"])
    header = fits.Header.fromtextfile(output.with_suffix(".head"))
    shape = header["NAXIS2"], header["NAXIS1"]
    y, x = np.mgrid[: shape[0], : shape[1]]
    sky = WCS(header).all_pix2world(x.ravel(), y.ravel(), 0)
    total, weights = np.zeros(shape), np.zeros(shape)
    for name in names:
        data, theirs = fits.getdata(name, header=True)
        weight = np.ones(data.shape)
        if given["WEIGHT_TYPE"] == "MAP_WEIGHT":
            weight = fits.getdata(name.replace(".fits", ".weight.fits"))
        column, row = (
            np.rint(v).astype(int).reshape(shape) for v in WCS(theirs).all_world2pix(*sky, 0)
        )
        inside = (column >= 0) & (column < data.shape[1]) & (row >= 0) & (row < data.shape[0])
        found = data[row[inside], column[inside]]
        share = weight[row[inside], column[inside]]
        if given["RESAMPLING_TYPE"] == "FLAGS":
            total[inside] = found
            weights[inside] = 1
        else:
            total[inside] += share * found
            weights[inside] += share
    if given["RESAMPLING_TYPE"] != "FLAGS":
        total = np.where(weights > 0, total / np.where(weights > 0, weights, 1), 0)
    if mode == "wrong-size":
        total = total[:-1]
    fits.writeto(output, total.astype(np.float32), overwrite=True)
    fits.writeto(given["WEIGHTOUT_NAME"], weights.astype(np.float32), overwrite=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
