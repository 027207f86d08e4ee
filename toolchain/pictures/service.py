"""Folders that computers make beside people's pictures.

Rules of this file: names only. Whoever lists pictures does not enter these folders: what lies in
them are copies, thumbnails and leftovers, never somebody's choice.
"""

from __future__ import annotations

SERVICE_FOLDERS = {
    "__macosx": "macOS's own files in an archive",
    "$recycle.bin": "Windows' bin",
    "recycler": "Windows' bin",
    "system volume information": "Windows' own files",
    "found.000": "Windows' finds of a disk check",
    "lost+found": "the finds of a disk check",
    "@eadir": "thumbnails of a NAS",
    "@recycle": "bin of a NAS",
    "#recycle": "bin of a NAS",
    "#snapshot": "snapshots of a NAS",
    "@recently-snapshot": "snapshots of a NAS",
    "__pycache__": "Python's cache",
}


def service_folder(name: str) -> str | None:
    """Return what a folder of this name holds if a computer makes it, None for any other name."""
    return SERVICE_FOLDERS.get(name.casefold())
