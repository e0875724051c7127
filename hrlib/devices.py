"""What computes: a setting such as "auto" as a torch device, or why it cannot be one; and the memory of a CPU."""

from __future__ import annotations

import ctypes

import torch

from .errors import UnknownName


def choose(name: str | torch.device = "auto") -> torch.device:
    """The torch device for a setting or an option.

    Args:
        name: "auto" for the CUDA GPU if torch sees one, else the CPU; or torch's own name: "cpu", "cuda", "cuda:1",
            "mps".

    Raises:
        UnknownName: a name that torch does not know, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a missing device is an error only at the first tensor
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as e:
        raise UnknownName(
            f"device {str(name)!r} ({str(e).splitlines()[0]})",
            expected="'auto', 'cpu', or a GPU that torch sees ('cuda', 'cuda:1', 'mps')",
            do="use 'auto' or 'cpu'; `hrlab doctor` says which GPU there is",
        ) from e
    return device


# glibc returns large blocks to the system as soon as they are freed, and the page faults of taking them again cost 1.5
# of the 3.5 CPU seconds of a step at 1024 pixels. These settings keep what is freed: as environment variables for
# processes that are yet to start, and as parameters of `mallopt` for this one (for threads that are yet to start).
KEEP_MEMORY = {  # variable -> (parameter of mallopt, value)
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TOP_PAD_": (-2, 256 << 20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, so that a loop need not ask the system for it in every step.

    True if the settings were taken; False where malloc is not glibc's. The peak stays the same within a few percent,
    but the process holds on to it until it ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; on Windows, no library without a name
        return False
    return all([mallopt(parameter, value) for parameter, value in KEEP_MEMORY.values()])
