"""The repository, the profiles, and the folders that notebooks write to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from ..errors import StoreError

PROFILES = ("laptop", "smoke", "ffhq", "paper")
RECORDED = Path("data", "recorded")  # runs of hours, made once; below the root


def root() -> Path:
    """The repository's root: $HRLAB_ROOT, or the folder that holds `hrlib/` and `notebooks/`."""
    given = os.environ.get("HRLAB_ROOT")
    path = Path(given).resolve() if given else Path(__file__).resolve().parents[2]
    if not (path / "notebooks").is_dir():
        raise StoreError(
            f"there is no notebooks folder in {path}",
            expected="the root of a clone of the repository",
            do="install with `pip install -e .` inside the clone, or set HRLAB_ROOT to it",
        )
    return path


def enter() -> None:
    """Make the root the current directory, since paths in a notebook's parameters are relative to it."""
    here = str(root())
    os.environ["HRLAB_ROOT"] = here  # it may have been a relative path
    os.chdir(here)


def figures_folder(profile: str) -> Path:
    """Where `hrlab run` puts the results of a profile; those of `laptop`, which are committed, are in `figures/`."""
    return root() / "figures" if profile == "laptop" else root() / "build" / f"figures-{profile}"


def live_folder() -> Path:
    """Where notebooks run by hand write, so that trying something out never changes the committed figures."""
    return root() / "build" / "live"


def cpus() -> int:
    """The number of threads this process may use: $OMP_NUM_THREADS, or the CPUs it may run on.

    As in OpenMP, "4,2" means 4 threads at the outer level, and 0 or anything that is not a number is ignored.
    """
    given = re.match(r"\s*(\d+)", os.environ.get("OMP_NUM_THREADS", ""))
    if given and int(given[1]):
        return int(given[1])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git(*arguments: str) -> str | None:
    """The output of a git command in the repository; None if it fails or there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root()), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
