"""The user's own HOTPANTS program as an engine."""

from core.subtraction.hotpants.engine import HotpantsSettings, subtract

__all__ = [
    "HotpantsSettings",
    "subtract",
]
