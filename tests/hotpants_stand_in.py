"""A program that takes HOTPANTS's place in tests, by what HOTPANTS documents of itself.

It accepts exactly the documented options of version 5.1.11, holds the files against the documented
contract, subtracts with one Gaussian kernel of the middle width of ``-ng`` and a fitted flux scale
and background, and writes the documented files with fill values, headers and kernel table. What it
was asked and what it found in the files goes, as JSON, to the file that ``STAND_IN_REPORT`` names.
``STAND_IN_MODE`` makes it misbehave: see `misbehave`.

It imports nothing of skydelta: an error made on both sides would hide.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy import ndimage

ONE_VALUE = """
inim tmplim outim tu tuk tl tg tr tp tni tmi iu iuk il ig ir ip ini imi ki r kcs ft sft nft mins
mous omi nrx nry rf nsx nsy ssf cmp afssc nss rss savexy c n fom ko bgo ssig ks kfm fi fin oni ond
obs obz nbs nbz oci oki v
"""
NO_VALUE = "sconv okn convvar nim ndm cim allm nc hki sht nsht"
# How many values each option takes; None: the first value says how many follow.
DOCUMENTED: dict[str, int | None] = {
    **dict.fromkeys(ONE_VALUE.split(), 1),
    **dict.fromkeys(NO_VALUE.split(), 0),
    "rkw": 2,
    "gd": 4,
    "ng": None,
    "pca": None,
}
DEFAULTS = {
    "tu": 25000, "tl": 0, "tg": 1, "iu": 25000, "il": 0, "ig": 1, "r": 10, "rss": 15, "nrx": 1,
    "nry": 1, "nsx": 10, "nsy": 10, "ko": 2, "bgo": 1, "n": "t", "c": "t", "fi": 1e-30, "fin": 0,
}  # fmt: skip
GAUSSIANS = [(6, 0.7), (4, 1.5), (2, 3.0)]
BAD = 0x80


class Refused(Exception):
    """What the real program would end with an error for."""


def say(text, stream=sys.stdout):
    """Write a message at once."""
    stream.write(f"{text}\n")
    stream.flush()


def parse(arguments):
    """Read a command line as documented."""
    options = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("-") or name[1:] not in DOCUMENTED:
            raise Refused(f"Unknown option : {name}")
        name = name[1:]
        count = DOCUMENTED[name]
        if count is None:
            count = 1 + int(rest[0]) * (2 if name == "ng" else 1)
        if len(rest) < count:
            raise Refused(f"-{name} needs {count} values")
        options[name], rest = rest[:count], rest[count:]
    for required in ("inim", "tmplim", "outim"):
        if required not in options:
            raise Refused(f"-{required} is required")
    for name in ("r", "rss", "nrx", "nry", "nsx", "nsy", "ko", "bgo"):
        if name in options:
            int(options[name][0])  # whole numbers
    return options


def plane(name, shape=None):
    """Read an image the way a C program with CFITSIO does: by name, of one shape."""
    if any(bracket in name for bracket in "[]()"):
        raise Refused(f"{name}: CFITSIO takes brackets for a filter")
    with fits.open(name) as hdus:
        data = hdus[0].data
        if data is None or data.ndim != 2:
            raise Refused(f"{name} is not an image")
        if shape is not None and data.shape != shape:
            raise Refused(f"{name} has another shape")
        return np.array(data, dtype=np.float64), data.dtype


def misbehave(mode):
    """Fail as the real program was seen to fail, or worse."""
    if mode == "error":
        say("   Good templ data : all")
        say("FITSIO status = 104: could not open the named file", sys.stderr)
        sys.exit(104)
    if mode == "crash":
        say("Mallocing massive amounts of memory...")
        os.abort()
    if mode == "hang":
        say("Mallocing massive amounts of memory...")
        child = os.fork()
        if child:
            Path("child.pid").write_text(str(child))
            if where := os.environ.get("STAND_IN_PID"):
                Path(where).write_text(f"{os.getpid()} {child}")
        time.sleep(100)
    if mode == "silent":
        say("SUCCESS")
        sys.exit(0)


def kernel_of(sigma, half):
    u = np.arange(-half, half + 1)
    g = np.exp(-0.5 * (u / sigma) ** 2)
    g /= g.sum()
    return np.outer(g, g)


def main():
    """Subtract."""
    options = parse(sys.argv[1:])

    def value(name, kind=float):
        given = options.get(name)
        return kind(given[0]) if given else kind(DEFAULTS[name])

    mode = os.environ.get("STAND_IN_MODE", "")
    misbehave(mode)
    report = {"options": options, "folder": os.getcwd(), "program": sys.argv[0]}
    image, image_type = plane(options["inim"][0])
    shape = image.shape
    template, template_type = plane(options["tmplim"][0], shape)
    if image_type.kind != "f" or template_type.kind != "f":
        raise Refused("images are floating point")
    report["image_range"] = [float(image.min()), float(image.max())]
    bad = {}
    for letter, data in (("i", image), ("t", template)):
        low, high = value(f"{letter}l"), value(f"{letter}u")
        bad[letter] = ~np.isfinite(data) | (data <= low) | (data >= high)
        report[f"{letter}_out_of_range"] = int(bad[letter].sum())
        if f"{letter}mi" in options:
            mask, kind = plane(options[f"{letter}mi"][0], shape)
            if kind.kind not in "iu":
                raise Refused("a mask holds bits")
            bits = mask.astype(int)
            report[f"{letter}_mask"] = {str(b): int((bits == b).sum()) for b in np.unique(bits)}
            bad[letter] |= (bits & BAD) != 0
    noise = {}
    for letter, data in (("i", image), ("t", template)):
        if f"{letter}ni" in options:
            noise[letter], _ = plane(options[f"{letter}ni"][0], shape)
            report[f"{letter}_noise"] = [
                float(np.median(noise[letter])),
                float(noise[letter].max()),
            ]
        else:
            noise[letter] = np.sqrt(np.abs(data) / value(f"{letter}g"))
    if "ssf" in options:
        lines = Path(options["ssf"][0]).read_text().split("\n")
        report["stars"] = [[int(v) for v in line.split()] for line in lines if line.strip()]
    if where := os.environ.get("STAND_IN_REPORT"):
        Path(where).write_text(json.dumps(report))

    given = options.get("ng")
    gaussians = GAUSSIANS
    if given:
        gaussians = [(int(d), float(s)) for d, s in zip(given[1::2], given[2::2], strict=True)]
    half, fill = value("r", int), value("fi")
    convolves_image = value("c", str) == "i"
    source, target = (image, template) if convolves_image else (template, image)
    source_letter, target_letter = ("i", "t") if convolves_image else ("t", "i")
    kernel = kernel_of(gaussians[1][1], half)
    smooth = ndimage.convolve(np.where(bad[source_letter], 0, source), kernel, mode="constant")
    usable = ~bad[target_letter]
    usable &= ~ndimage.binary_dilation(bad[source_letter], np.ones((2 * half + 1,) * 2))
    usable[:half] = usable[-half:] = False
    usable[:, :half] = usable[:, -half:] = False
    if mode == "no-stamps":
        usable[:] = False
    header = fits.Header()
    header["NREGION"] = 1
    header["MASKVAL"] = fill
    regions = fits.Header()
    total, sky = 0.0, 0.0
    if usable.any():
        total, sky = np.polyfit(smooth[usable], target[usable], 1)
        regions["REGION00"] = f"[1:{shape[1]},1:{shape[0]}]"
        regions["CONVOL00"] = "IMAGE" if convolves_image else "TEMPLATE"
        regions["KSUM00"] = (f"{total:.4f}", "Kernel Sum")
        header.update(regions)
    convolved = total * smooth + sky
    difference = convolved - target if convolves_image else target - convolved
    variance = noise[target_letter] ** 2 + total**2 * ndimage.convolve(
        noise[source_letter] ** 2, kernel**2, mode="constant"
    )
    # difference and convolved image are now in the system of the image that was not convolved
    target_system = "t" if convolves_image else "i"
    wanted = value("n", str)
    if wanted not in "tiu":
        raise Refused(f"-n {wanted}")
    scale = 1.0 if wanted in ("u", target_system) or not total else 1 / total
    rms = scale * np.sqrt(variance)
    planes = {
        "outim": np.where(usable, scale * difference, fill),
        "oci": np.where(usable, scale * convolved, fill),
        "ond": np.where(usable, scale * difference / np.maximum(rms, 1e-20), fill),
        "oni": np.where(usable | (bad[target_letter] == 0), rms, value("fin")),
    }
    if mode == "nan":
        for data in planes.values():
            data[40:43, 50:53] = np.nan
    for name, data in planes.items():
        if name in options:
            path = options[name][0]
            fits.writeto(
                path, data.astype(np.float32), header if name == "outim" else None, overwrite=True
            )
    if "oki" in options:
        write_table(options["oki"][0], regions, gaussians, total, half, value, mode)
    if "savexy" in options and usable.any():
        star = "image;box( 100, 100,25,25) # color=green\n"
        Path(options["savexy"][0]).write_text("#   X    Y\n" + 12 * star)
        Path(options["savexy"][0] + ".skipped").write_text("#   X    Y\n" + 3 * star)
    say("0 stamps built (0.00%)" if mode == "no-stamps" else f"Using Kernel Sum = {total}")
    say("\nSUCCESS")


def write_table(path, regions, gaussians, total, half, value, mode):
    """Write the kernel as coefficients: the second Gaussian alone, the same everywhere."""
    order, sky_order = value("ko", int), value("bgo", int)
    n_basis = sum((d + 1) * (d + 2) // 2 for d, _ in gaussians)
    n_terms = (order + 1) * (order + 2) // 2
    column = np.zeros(2 + (n_basis - 1) * n_terms + (sky_order + 1) * (sky_order + 2) // 2 + 5)
    column[1] = total
    first = gaussians[0][0]
    second = (first + 1) * (first + 2) // 2  # its basis number: the first Gaussian's come before
    column[2 + (second - 1) * n_terms] = total
    if mode == "other-table":
        column[2 + (second - 1) * n_terms] = -2 * total
    table = fits.BinTableHDU.from_columns([fits.Column("Region0", "D", array=column)])
    table.header["NGAUSS"] = len(gaussians)
    for number, (degree, sigma) in enumerate(gaussians, 1):
        table.header[f"DGAUSS{number}"], table.header[f"SGAUSS{number}"] = degree, sigma
    table.header["FWKERN"] = 2 * half + 1
    table.header["CKORDER"], table.header["BGORDER"] = order, sky_order
    fits.HDUList([fits.PrimaryHDU(header=regions), table]).writeto(path, overwrite=True)


if __name__ == "__main__":
    try:
        main()
    except Refused as refusal:
        say(refusal, sys.stderr)
        sys.exit(1)
