"""Getting files from archives: allowed hosts only, bounded in time and size, checked."""

from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.fetching.fetcher import Content, Fetched, Fetcher, FetchPolicy

__all__ = ["ArchiveFiles", "Content", "FetchPolicy", "Fetched", "Fetcher"]
