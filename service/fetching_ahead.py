"""Having everything here that the template of an exposure will need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.templates import TemplateProvider, TemplateRequest


def fetch_ahead(templates: TemplateProvider, request: TemplateRequest) -> str:
    """Fetch what is not in the cache yet; where all of it is, no pixel is read.

    Parameters
    ----------
    templates : TemplateProvider
        Over the cache that is to be warmed.
    request : TemplateRequest

    Returns
    -------
    str
        Whose template it is, in a few words.

    Raises
    ------
    core.errors.ExposureError
        As ``templates.find`` does.
    """
    from core.templates.chain import ChainTemplates  # the science: not for those who never ask

    if isinstance(templates, ChainTemplates):
        name = templates.kept_by(request)
        if name is not None:
            return f"{name}: all of it was here"
    facts = templates.find(request).facts
    return f"{facts.provider} {facts.template_id}"
