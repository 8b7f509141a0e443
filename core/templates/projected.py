"""Templates on the pixel grids of repeated pointings, kept with all that was measured on them.

What is kept is determined by the template, the grid (to a hundredth of a pixel, see
`core.templates.shared_grids`), and the code that makes and projects it. The stars of
each exposure are compared with those that are kept: what is left of the shift belongs to the
matching kernel while it is below half a pixel; if it is more, the template is projected anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
from astropy.wcs import WCS

from core.errors import NoTemplate
from core.exposure import TemplateFacts
from core.image import ExposureFacts, Image
from core.psf import PSFModel
from core.stars import SourceList
from core.templates.arrayfile import read_arrays, write_arrays
from core.templates.cache import CacheKey, FileCache, LockTimeout
from core.templates.matching import GriddedTemplate, Projection, project
from core.templates.shared_grids import grid_fingerprint, shared_fingerprint
from core.templates.template import Identifying, Template, TemplateProvider, TemplateRequest

Timed = Callable[[str], AbstractContextManager[None]]
OnFound = Callable[[TemplateFacts, Sequence[str]], None]

KIND = "projected"
# What is kept depends on these and on all that they import, that is on the pixels that providers
# make and on what is done with them; when any changes, it is made anew. They are named and not
# imported: what makes templates need not know who keeps them, nor the other way round.
_PRODUCING = (
    "core.templates.matching",
    "core.templates.arrayfile",
    "core.templates.projected",
    "core.templates.chain",
    "core.templates.directory",
    "core.templates.hips.provider",
    "core.templates.cells.survey",
    "core.templates.panstarrs",
    "core.templates.legacysurvey",
    "core.templates.star_mask",
    "core.templates.single",
)
_IMPORT = re.compile(r"^\s*from (core[.\w]*) import", re.MULTILINE)
_NOT_PRODUCING = (
    "core.subtraction",
    "core.templates.cache",
    "core.templates.fetching",
    "core.templates.template",
)


@dataclass(frozen=True)
class TemplateOnGrid:
    """A template as the pipeline needs it.

    Attributes
    ----------
    facts : TemplateFacts
        Where it came from.
    gridded : GriddedTemplate
        On the grid of the exposure.
    kept : bool
        It was projected before, for another exposure of this grid.
    """

    facts: TemplateFacts
    gridded: GriddedTemplate
    kept: bool = False


def template_on_grid(
    provider: TemplateProvider,
    request: TemplateRequest,
    science: Image,
    science_sources: SourceList,
    *,
    cache: FileCache | None = None,
    threads: int = 1,
    timed: Timed = lambda stage: nullcontext(),
    on_found: OnFound = lambda facts, notes: None,
) -> TemplateOnGrid:
    """Find a template and bring it onto the grid of an exposure, from the cache if it is there.

    Parameters
    ----------
    provider : TemplateProvider
        Asked for the template; one that is `core.templates.template.Identifying` need not read it.
    request : TemplateRequest
        For the grid of ``science``.
    science : Image
        The exposure.
    science_sources : SourceList
        Its sources.
    cache : FileCache or None
        Where projected templates are kept; without one every template is projected anew.
    threads : int
        Threads for the projection.
    timed : callable
        Given ``"template"`` or ``"register"``, returns a context in which that is done.
    on_found : callable
        Given the template's facts and notes as soon as it is known which one it is.

    Raises
    ------
    core.errors.ExposureError
        Whatever the provider raises, or `core.errors.NoTemplate` if nothing of the template lies
        on the exposure.
    """
    search = _Search(provider, request, science, science_sources, threads, timed, on_found)
    if cache is None or request.wcs is None:
        return search.fresh()
    with timed("template"):
        identity = search.identify()
        grid = shared_fingerprint(cache, request.wcs, request.shape) if identity else None
    for _ in range(3):  # as it is expected to be, as it is, and anew where it does not fit
        if not identity:
            break
        key = key_of(identity, request, grid)
        try:
            with ExitStack() as stage:
                stage.enter_context(timed("template"))
                make = search.writer(identity, stage.close)
                with cache.entry(key, make, deadline=request.deadline) as file:
                    if file.fresh:
                        break
                    kept = _read(file.path, science.wcs)
        except LockTimeout:
            break  # to project it is faster than to wait any longer
        except _AnotherTemplate as other:
            identity = other.identity
            continue
        except _NotFound as none:
            raise none.error from None
        if kept.facts.overlap < request.min_overlap:
            break  # enough for whoever asked then, and for the provider to judge now
        with timed("register"):
            found = kept.projection.shift_to(science, science_sources)
            if kept.projection.still_fits(found):
                if search.template is None:
                    on_found(kept.facts, kept.notes)
                return TemplateOnGrid(kept.facts, kept.projection.matched(found), kept=True)
            cache.forget(key, deadline=request.deadline)
    return search.fresh()


def key_of(
    identity: tuple[str, ...], request: TemplateRequest, grid: str | None = None
) -> CacheKey:
    """Return what a projected template is kept under: template, grid, band, and our own code.

    Parameters
    ----------
    identity : tuple of str
        Of the template.
    request : TemplateRequest
    grid : str, optional
        Fingerprint of a grid that agrees with that of the request; by default its own.
    """
    assert request.wcs is not None
    ny, nx = request.shape
    if grid is None:
        grid = grid_fingerprint(request.wcs, request.shape)
    parts = (code_fingerprint(), grid, f"{nx} x {ny}", request.band or "", *identity)
    return CacheKey(KIND, parts, ".arrays")


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Return what tells this version of the code that makes what is kept from others."""
    digest = hashlib.sha256()
    for name, source in sorted(producing_code().items()):
        digest.update(b"%s %d " % (name.encode(), len(source)))
        digest.update(source)
    return digest.hexdigest()


def producing_code() -> dict[str, bytes]:
    """Return the source of all modules on which a projected template depends, by name."""
    code: dict[str, bytes] = {}
    waiting = list(_PRODUCING)
    while waiting:
        name = waiting.pop()
        if name in code or name.startswith(_NOT_PRODUCING):
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        code[name] = Path(spec.origin).read_bytes()
        waiting += _IMPORT.findall(code[name].decode())
    return code


@dataclass
class _Search:
    """One look for a template, remembered while the cache is asked."""

    provider: TemplateProvider
    request: TemplateRequest
    science: Image
    sources: SourceList
    threads: int
    timed: Timed
    on_found: OnFound
    template: Template | None = None
    found: TemplateOnGrid | None = None
    projection: Projection | None = None

    def identify(self) -> tuple[str, ...]:
        """Return the identity of the template, read only if that is the way to know it."""
        if isinstance(self.provider, Identifying):
            expected = self.provider.identify(self.request)
            if expected is not None:
                return expected
        return self.find().identity

    def find(self) -> Template:
        """Return the template, looked for once."""
        if self.template is None:
            self.template = self.provider.find(self.request)
            self.on_found(self.template.facts, self.template.image.notes)
        return self.template

    def fresh(self) -> TemplateOnGrid:
        """Return the template projected for this very exposure."""
        if self.found is None:
            with self.timed("template"):
                template = self.find()
            with self.timed("register"):
                self.projection, shift = project(
                    template, self.science, self.sources, threads=self.threads
                )
                gridded = self.projection.matched(shift)
            self.found = TemplateOnGrid(template.facts, gridded)
        return self.found

    def writer(
        self, identity: tuple[str, ...], begin: Callable[[], None]
    ) -> Callable[[Path], Mapping[str, Any]]:
        """Return what makes the entry of an identity, if the template turns out to be that.

        ``begin`` is called when it begins: the time that is spent then is counted here.
        """

        def make(path: Path) -> Mapping[str, Any]:
            begin()
            try:
                with self.timed("template"):
                    template = self.find()
                if template.identity != identity:
                    raise _AnotherTemplate(template.identity)
                facts = self.fresh().facts
            except NoTemplate as error:
                # Not for the cache to remember: the provider knows for how long that is so.
                raise _NotFound(error) from error
            assert self.projection is not None
            with self.timed("template"):
                _write(path, _Kept(facts, template.image.notes, self.projection))
            return {"template": facts.template_id, "provider": facts.provider}

        return make


class _AnotherTemplate(Exception):
    """The provider gives another template than it said."""

    def __init__(self, identity: tuple[str, ...]) -> None:
        super().__init__(identity)
        self.identity = identity


class _NotFound(Exception):
    """There is no template; carries the error past the cache."""

    def __init__(self, error: NoTemplate) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class _Kept:
    facts: TemplateFacts
    notes: tuple[str, ...]
    projection: Projection = field(repr=False)


_COLUMNS = tuple(column.name for column in fields(SourceList))
_PSF_FACTS = tuple(fact.name for fact in fields(PSFModel) if fact.name != "coefficients")


def _write(path: Path, kept: _Kept) -> None:
    projection, image = kept.projection, kept.projection.image
    psf = image.psf
    assert psf is not None
    arrays: dict[str, npt.NDArray[Any]] = {
        "data": image.data,
        "mask": image.mask,
        "psf": psf.coefficients,
        **{name: getattr(projection.places, name) for name in _COLUMNS},
    }
    if image.variance is not None:
        arrays["variance"] = image.variance
    facts = {
        "template": asdict(kept.facts),
        "notes": kept.notes,
        "image": {
            "name": image.name,
            "notes": image.notes,
            "noise_power": image.noise_power,
            "facts": asdict(image.facts),
        },
        "psf": {name: getattr(psf, name) for name in _PSF_FACTS},
        "projection": {key: getattr(projection, key) for key in ("seeing", "moved", "notes")},
    }
    write_arrays(path, arrays, facts)


def _read(path: Path, wcs: WCS | None) -> _Kept:
    arrays, facts = read_arrays(path)
    psf, image, projection = facts["psf"], facts["image"], facts["projection"]
    known = ExposureFacts(**image["facts"])
    return _Kept(
        TemplateFacts(**facts["template"]),
        tuple(facts["notes"]),
        Projection(
            image=Image(
                data=arrays["data"],
                mask=arrays["mask"],
                variance=arrays.get("variance"),
                wcs=wcs,
                psf=PSFModel(arrays["psf"], **{**psf, "shape": tuple(psf["shape"])}),
                facts=replace(known, estimated=tuple(known.estimated)),
                name=image["name"],
                notes=tuple(image["notes"]),
                noise_power=image["noise_power"],
            ),
            places=SourceList(**{name: arrays[name] for name in _COLUMNS}),
            seeing=projection["seeing"],
            moved=tuple(projection["moved"]),
            notes=tuple(projection["notes"]),
        ),
    )
