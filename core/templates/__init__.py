"""Where templates come from."""

from core.templates.hips_image import get_hips_image
from core.templates.template import Template, TemplateProvider, TemplateRequest

__all__ = ["Template", "TemplateProvider", "TemplateRequest", "get_hips_image"]
