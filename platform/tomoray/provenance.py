"""Which code this is: the package's version, and the commit where it runs from a checkout or was sent from one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import tomoray

COMMIT = "COMMIT"  # a file of the package that says so where git cannot
CHANGED = "-dirty"  # as `git describe` says it
TIMEOUT_S = 10.0


def commit() -> str:
    """Return the commit of the package, marked where files of it have changed since; empty where it comes from no checkout."""
    package = Path(tomoray.__file__).parent
    if (package / COMMIT).is_file():
        return (package / COMMIT).read_text(encoding="utf-8").strip()
    try:
        if not _git(package, "ls-files", "__init__.py"):  # installed into an environment that lies in another project's checkout
            return ""
        return _git(package, "rev-parse", "HEAD") + (CHANGED if _git(package, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout.strip()
