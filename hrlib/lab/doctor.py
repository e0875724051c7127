"""Is everything here that a profile needs? What `hrlab doctor` looks at, each with what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .notebook import catalogue, overrides
from .place import root

MEMORY = {"smoke": 2, "laptop": 4, "paper": 16}  # GiB
DISK = {"smoke": 1, "laptop": 2, "paper": 40}  # GiB


@dataclass(frozen=True)
class Finding:
    """One line of the report; `needed` says whether the profile cannot do without."""

    what: str
    found: str
    good: bool
    needed: bool = True
    do: str = ""


def examine(profile: str = "laptop") -> Iterator[Finding]:
    """Look at everything that `profile` needs, yielding findings as they are made.

    Raises:
        UnknownName: there is no such profile.
    """
    notebooks = catalogue()
    changes = overrides(profile, notebooks)
    yield _python()
    yield from _packages()
    yield from _machine(profile)
    wanted = {name: {**nb.parameters, **changes[name]} for name, nb in notebooks.items()}
    yield from _catalogued({text for values in wanted.values() for text in _strings(values)}, profile)


def _python() -> Finding:
    version = platform.python_version_tuple()
    good = (int(version[0]), int(version[1])) >= (3, 11)
    return Finding("Python", platform.python_version(), good, do="install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    lock = root() / "requirements.lock"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", lock.read_text(), re.M)) if lock.exists() else {}
    other = []
    for name, pin in pins.items():
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != pin:
            other.append(f"{name} {found} (lock: {pin})")
    found = f"{len(pins)} as in requirements.lock" if not other else "; ".join(other[:5]) + " …" * (len(other) > 5)
    yield Finding("packages", found, bool(pins) and not other, do="run `make setup`")
    import torch

    from .. import torchvision_was_healed

    how = "its Python part; the compiled part does not fit this torch and nothing here uses it"
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True)
    yield Finding("torchvision", how if torchvision_was_healed() else "whole", True)
    from jupyter_client.kernelspec import KernelSpecManager

    kernels = KernelSpecManager().find_kernel_specs()
    yield Finding("Jupyter kernel", kernels.get("python3", "none"), "python3" in kernels, do="run `make setup`")


def _machine(profile: str) -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    yield Finding(
        "memory", f"{memory:.0f} GiB", memory >= MEMORY[profile] * 0.95, do=f"{MEMORY[profile]} GiB are needed"
    )
    disk = shutil.disk_usage(root()).free / 2**30
    yield Finding("free disk space", f"{disk:.0f} GiB", disk >= DISK[profile], do=f"{DISK[profile]} GiB are needed")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU cores", str(cpus), True)
    gpu = torch.cuda.is_available()
    yield Finding(
        "GPU",
        torch.cuda.get_device_name() if gpu else "none",
        gpu or profile != "paper",
        needed=False,
        do="the paper profile runs without one, but takes days",
    )


def _catalogued(named: set[str], profile: str) -> Iterator[Finding]:
    """Weight files and data sets: needed when they ship, or when a notebook's parameters name them."""
    from .. import weights

    for name, entry in weights.catalogue().items():
        needed = entry.profile == "laptop" or name in named
        if needed or profile == "paper":
            state = weights.status(name)
            kind = "data set" if entry.kind == "dataset" else "weights"
            found = {"unverified": f"there ({entry.origin} publishes no hash)"}.get(state, state)
            yield Finding(f"{kind} {name}", found, state in ("ok", "unverified"), needed, entry.by_hand)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
