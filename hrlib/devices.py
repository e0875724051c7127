"""The one place that turns a setting such as "auto" into a torch device, or says why it cannot."""

from __future__ import annotations

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
