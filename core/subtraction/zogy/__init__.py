"""ZOGY: proper image subtraction."""

from core.subtraction.zogy.engine import ZogyResult, ZogySettings, subtract

__all__ = [
    "ZogyResult",
    "ZogySettings",
    "subtract",
]
