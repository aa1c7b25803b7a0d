"""Folders for what can be computed again: ``$XDG_CACHE_HOME/seqfoundry`` or ``~/.cache``."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return a folder of the user's cache, made if absent; None where it cannot be written.

    None is the answer for a user without a home, or with a read-only one.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():
            base = Path.home() / ".cache"
        folder = base / "seqfoundry" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
