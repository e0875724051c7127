"""How much more memory this process may use: by the machine, by its own limits and by its control groups.

psutil reports the machine's memory, but not control groups, nor a process's limits outside Linux; those are read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

ADDRESSES = "the limit of the process's address space (ulimit -v)"  # mapped files count towards it
UNLIMITED = 1 << 60  # version 1 of control groups writes such large numbers for "no limit"


class Headroom(NamedTuple):
    """What one limit leaves.

    free: bytes that may still be allocated. limit: the limit in words. hard: whether using more fails or kills the
        process, rather than swapping.
    """

    free: int
    limit: str
    hard: bool


def memory(device: torch.device) -> tuple[int, list[Headroom]]:
    """(bytes of the device's memory that this process uses, what each limit leaves it)."""
    if device.type == "cuda":
        import torch

        free = torch.cuda.mem_get_info(device)[0]
        return torch.cuda.memory_reserved(device), [Headroom(free, "the GPU's memory", True)]
    import psutil

    used = psutil.Process().memory_info().rss
    machine = Headroom(psutil.virtual_memory().available, "the machine's free memory", False)
    return used, [machine, *process_limits(), *group_limits()]


def process_limits() -> list[Headroom]:
    """What RLIMIT_AS (`ulimit -v`) and RLIMIT_DATA (`ulimit -d`) leave, if they are set."""
    try:
        import resource
    except ImportError:  # Windows has none
        return []
    import psutil

    used = psutil.Process().memory_info()
    found = []
    for name, count, words in (
        ("RLIMIT_AS", used.vms, ADDRESSES),
        ("RLIMIT_DATA", getattr(used, "data", used.vms), "the limit of the process's data (ulimit -d)"),
    ):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit not in (resource.RLIM_INFINITY, -1):
            found.append(Headroom(max(0, limit - count), words, True))
    return found


def group_limits(proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[Headroom]:
    """What the process's control groups leave (containers, SLURM, systemd), of version 1 or 2."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:  # hierarchy:controllers:path
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = mount, ("memory.max", "memory.high", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes",) * 2 + ("memory.usage_in_bytes", "total_inactive_file")
            base = mount / "memory"
        else:
            continue
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):  # limits further up apply too; a container may show only the mount
            if folder.is_relative_to(base) and (free := _free(folder, *names)) is not None:
                found.append(Headroom(free, f"the limit of the control group {folder} ({names[0]})", True))
    return found


def _free(folder: Path, limit: str, soft_limit: str, usage: str, cache: str) -> int | None:
    """Bytes that a group leaves, counting reclaimable file cache as free; None without a limit."""
    limits = [n for n in (_number(folder / limit), _number(folder / soft_limit)) if n is not None and n < UNLIMITED]
    used = _number(folder / usage)
    if not limits or used is None:
        return None
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= min(used, int(stat.get(cache, 0)))
    except (OSError, ValueError):  # then the cache counts as used
        pass
    return max(0, min(limits) - used)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # missing, or "max"
        return None
