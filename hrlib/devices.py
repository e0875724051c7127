"""Where tensors live: the one place that turns a setting into a device, or says why it cannot."""

from __future__ import annotations

import torch

from .errors import UnknownName


def choose(name: str | torch.device = "auto") -> torch.device:
    """The device of a setting or an option.

    Args:
        name: "auto" takes the CUDA GPU when torch sees one, else the CPU; or torch's own name: "cpu", "cuda", "cuda:1",
            "mps".

    Raises:
        UnknownName: a name that torch does not know, or a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a device that is not here is an error at the first tensor, not before
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as e:
        raise UnknownName(
            f"device {str(name)!r} ({str(e).splitlines()[0]})",
            expected="'auto', 'cpu', or a GPU that torch sees ('cuda', 'cuda:1', 'mps')",
            do="use 'auto' or 'cpu'; `hrlab doctor` says which GPU there is",
        ) from e
    return device
