"""How much memory this process may still take, and what says so: the machine, its own limits, its control groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

ADDRESSES = "the limit of the process's address space (ulimit -v)"  # in which mapped files count, too
UNLIMITED = 1 << 60  # a control group of the first version writes such numbers where it has no limit


class Room(NamedTuple):
    """free: bytes that may still be taken. why: what says so. hard: whether more would be refused or killed, rather
    than swapped."""

    free: int
    why: str
    hard: bool


def of(device: torch.device) -> tuple[int, list[Room]]:
    """(bytes of the device's memory taken by this process, what it may still take by every limit there is)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_reserved(device), [Room(torch.cuda.mem_get_info(device)[0], "the GPU's memory", True)]
    import psutil

    taken = psutil.Process().memory_info().rss
    rooms = [Room(psutil.virtual_memory().available, "the machine's free memory", False)]
    return taken, [*rooms, *process_limits(), *group_limits()]


def process_limits() -> list[Room]:
    """RLIMIT_AS (`ulimit -v`) and RLIMIT_DATA (`ulimit -d`), where they are set."""
    try:
        import resource
    except ImportError:  # Windows has none
        return []
    import psutil

    used = psutil.Process().memory_info()
    found = []
    for name, count, what in (
        ("RLIMIT_AS", used.vms, ADDRESSES),
        ("RLIMIT_DATA", getattr(used, "data", used.vms), "the limit of the process's data (ulimit -d)"),
    ):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit not in (resource.RLIM_INFINITY, -1):
            found.append(Room(max(0, limit - count), what, True))
    return found


def group_limits(proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[Room]:
    """What the control groups that this process is in leave, of either version: those of containers, SLURM, systemd."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:  # no Linux
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
        for folder in (inside, *inside.parents):  # a limit above holds, too; in a container only the mount is there
            if folder.is_relative_to(base) and (room := _left(folder, *names)) is not None:
                found.append(Room(room, f"the limit of the control group {folder} ({names[0]})", True))
    return found


def _left(folder: Path, most: str, high: str, used: str, cache: str) -> int | None:
    """Bytes that a group leaves; pages of files that it would drop first count as free. None without a limit."""
    limits = [n for n in (_number(folder / most), _number(folder / high)) if n is not None and n < UNLIMITED]
    taken = _number(folder / used)
    if not limits or taken is None:
        return None
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken -= min(taken, int(stat.get(cache, 0)))
    except (OSError, ValueError):  # then they count as taken
        pass
    return max(0, min(limits) - taken)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
