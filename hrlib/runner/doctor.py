"""Is everything here that a profile needs? The checks of `hrlab doctor`, each with what to do if it fails."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..lab.notebook import effective, profiles, scan
from ..lab.place import root

MEMORY = {"smoke": 2, "laptop": 4, "ffhq": 6, "paper": 16}  # GiB
DISK = {"smoke": 1, "laptop": 2, "ffhq": 3, "paper": 40}  # GiB
# Parameter values that stand for files in the catalogue, besides the files' own names. With `perceptual = "imagenet"`,
# a loss on one of the `TRUNKS` needs that trunk's weights, and every notebook with that value uses a VGG16.
WORDS = {"imagenet": "vgg16_imagenet", "lpips_vgg": "vgg16_imagenet", "style_vgg": "vgg16_imagenet"}
WORDS |= {"lpips_alex": "alexnet_imagenet", "lpips_resnet": "resnet50_imagenet", "inception": "inception_fid"}
WORDS |= {"dlib": "dlib_recognition", "dlib_crop": "dlib_recognition"}
TRUNKS = ("resnet50", "deit")


@dataclass(frozen=True)
class Check:
    """One line of the report. `needed`: the profile cannot do without it."""

    what: str
    found: str
    good: bool
    needed: bool = True
    do: str = ""


def examine(profile: str = "laptop") -> Iterator[Check]:
    """Check everything that `profile` needs, and yield each check as it is made.

    Raises:
        UnknownName: there is no such profile.
    """
    notebooks, strays = scan()
    values = effective(profile, notebooks)
    for name, problem in strays.items():
        needed = name in profiles()
        yield Check(f"notebook {name}", f"left out: {problem.got}", False, needed, do=problem.do)
    yield _python()
    yield from _packages(profile)
    yield from _machine(profile)
    yield from _catalogued(values, profile)


def _python() -> Check:
    version = platform.python_version_tuple()
    good = (int(version[0]), int(version[1])) >= (3, 11)
    return Check("Python", platform.python_version(), good, do="install Python 3.11 or newer")


def _locked(what: str, lock: str, do: str) -> Check:
    """Whether the packages that a lock file in the root pins are installed in these versions."""
    file = root() / lock
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.M)) if file.exists() else {}
    other = []
    for name, pin in pins.items():
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found != pin:
            other.append(f"{name} {found} (lock: {pin})")
    found = f"{len(pins)} as in {lock}" if not other else "; ".join(other[:5]) + " …" * (len(other) > 5)
    return Check(what, found, bool(pins) and not other, do=do)


def _packages(profile: str) -> Iterator[Check]:
    yield _locked("packages", "requirements.lock", "run `make setup`")
    if profile == "ffhq":
        yield _locked("packages of real networks", "requirements-faces.lock", "run `make faces`")
    import torch

    from .. import torchvision_was_healed

    how = "Python part only; its compiled part does not fit this torch, and nothing here uses it"
    yield Check("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True)
    yield Check("torchvision", how if torchvision_was_healed() else "complete", True)
    from jupyter_client.kernelspec import KernelSpecManager

    kernels = KernelSpecManager().find_kernel_specs()
    yield Check("Jupyter kernel", kernels.get("python3", "none"), "python3" in kernels, do="run `make setup`")


def _machine(profile: str) -> Iterator[Check]:
    import psutil
    import torch

    memory = psutil.virtual_memory().total / 2**30
    yield Check(
        "memory", f"{memory:.0f} GiB", memory >= MEMORY[profile] * 0.95, do=f"use a machine with {MEMORY[profile]} GiB"
    )
    disk = shutil.disk_usage(root()).free / 2**30
    yield Check("free disk space", f"{disk:.0f} GiB", disk >= DISK[profile], do=f"free {DISK[profile]} GiB")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("CPU cores", str(cpus), True)
    gpu = torch.cuda.is_available()
    yield Check(
        "GPU",
        torch.cuda.get_device_name() if gpu else "none",
        gpu or profile != "paper",
        needed=False,
        do="use a GPU if you can: without one the paper profile takes days",
    )


def _catalogued(values: Mapping[str, Mapping[str, Any]], profile: str) -> Iterator[Check]:
    """Weight files and data sets: needed if they ship, or if a notebook's parameters use them."""
    from .. import weights

    entries = weights.catalogue()
    files = {name: entry.file for name, entry in entries.items() if entry.kind == "dataset"}
    used = set().union(*(_used(of_one, files) for of_one in values.values()))
    for name, entry in entries.items():
        needed = entry.profile == "laptop" or name in used or entry.profile == profile == "ffhq"
        if needed or profile == "paper":
            state = weights.status(name)
            kind = "data set" if entry.kind == "dataset" else "weights"
            found = {"unverified": f"there ({entry.origin} publishes no hash)"}.get(state, state)
            yield Check(f"{kind} {name}", found, state in ("ok", "unverified"), needed, entry.by_hand)


def _used(values: Mapping[str, Any], files: Mapping[str, str]) -> set[str]:
    """The names in the catalogue that one notebook's parameters use.

    Networks are used by name. Data sets are not, because "anime" is also a domain: they are used by pictures in their
    folders, "folder:data/..." or "file:data/...". The keys of a mapping count only where they replace `{}` in a name.

    files: data set -> its path below data/.
    """
    texts, keys = set(_strings(values)), set(_keys(values))
    texts |= {text.replace("{}", key) for text in texts if "{}" in text for key in keys}
    names = texts - files.keys() | {WORDS[text] for text in texts & WORDS.keys()}
    if "imagenet" in texts:
        names |= {f"{trunk}_imagenet" for trunk in texts.intersection(TRUNKS)}
    pictures = [
        PurePath(path) for kind, _, path in (text.partition(":") for text in texts) if kind in ("folder", "file")
    ]
    return names | {name for name, file in files.items() if any(p.is_relative_to(f"data/{file}") for p in pictures)}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(item)
