"""Where templates come from."""

from core.templates.hips.image import get_hips_image
from core.templates.masking import mask_template
from core.templates.survey_image import (
    get_ls_image,
    get_ls_image_and_mask,
    get_ps1_image,
    get_ps1_image_and_mask,
    get_survey_image,
    get_survey_image_and_mask,
)
from core.templates.template import Template, TemplateProvider, TemplateRequest

__all__ = [
    "Template",
    "TemplateProvider",
    "TemplateRequest",
    "get_hips_image",
    "get_ls_image",
    "get_ls_image_and_mask",
    "get_ps1_image",
    "get_ps1_image_and_mask",
    "get_survey_image",
    "get_survey_image_and_mask",
    "mask_template",
]
