"""Files that were fetched or made once, kept for all who need them; see `TemplateCache`."""

from core.templates.cache.cached_file import CachedFile, FileCache, Make
from core.templates.cache.eviction import Pruned
from core.templates.cache.inventory import CacheEntry, CacheStatistics, KindStatistics
from core.templates.cache.kept_only import KeptOnly, NotKept
from core.templates.cache.key import CacheKey
from core.templates.cache.locks import LockTimeout
from core.templates.cache.scratch import NoCache
from core.templates.cache.store import TemplateCache

__all__ = [
    "CacheEntry",
    "CacheKey",
    "CacheStatistics",
    "CachedFile",
    "FileCache",
    "KeptOnly",
    "KindStatistics",
    "LockTimeout",
    "Make",
    "NoCache",
    "NotKept",
    "Pruned",
    "TemplateCache",
]
