"""Where templates come from."""

from core.templates.template import Template, TemplateProvider, TemplateRequest

__all__ = ["Template", "TemplateProvider", "TemplateRequest"]
