"""Tensors that live in a file: Adam's moments of a picture larger than memory."""

from __future__ import annotations

import mmap
import tempfile

import torch


class Mapped:
    """A zero tensor in an anonymous temporary file, written and read like any other.

    The file is deleted with the object, or by the system should the process die. `release` lets go of the memory that
    its pages take; what they hold stays in the file.

    Args:
        like: gives shape and type; a CPU tensor.
    """

    def __init__(self, like: torch.Tensor) -> None:
        size = max(1, like.numel() * like.element_size())
        with tempfile.TemporaryFile(prefix="hrlib-moments-") as file:
            file.truncate(size)
            self.pages = mmap.mmap(file.fileno(), size)  # keeps the file open
        self.tensor = torch.frombuffer(self.pages, dtype=like.dtype, count=like.numel()).view(like.shape)

    def release(self) -> None:
        """Write what changed, and let go of the pages."""
        self.pages.flush()
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)
