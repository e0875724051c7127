"""One at a time: a lock that ends with its process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import BatchError


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at `path`, which the system releases when this process ends, however it ends.

    Raises:
        BatchError: somebody else holds it; `what` says what they are doing.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as e:
        raise BatchError(f"another {what} is working", expected="one at a time", do="wait until it ends") from e
