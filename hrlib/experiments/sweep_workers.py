"""Where the runs of a sweep are performed: Dask workers, on this machine or wherever a scheduler has them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import devices
from ..errors import BatchError, number
from ..lab.place import cpus, root

if TYPE_CHECKING:
    from dask.distributed import Client

ENVIRONMENT = "HRLAB_SCHEDULER"
PATIENCE = "20 s"  # how long to wait for a scheduler to answer
SHARE = "HRLAB_THREADS"  # of a worker on this machine
ATTEMPTS = 3  # a run whose worker has died this often counts as failed


def take_share() -> None:
    """In a worker on this machine, compute with its share of the threads.

    OMP_NUM_THREADS alone does not do it: a worker imports the script of its parent first, and torch with it, before its
    own environment is set.
    """
    if threads := os.environ.get(SHARE):
        import torch

        torch.set_num_threads(int(threads))


@contextlib.contextmanager
def client(workers: int, scheduler: str, *, frugal: bool) -> Iterator[Client]:
    """A client of the scheduler at an address, or of a cluster on this machine that ends with the block.

    frugal: workers return freed memory to the system, as malloc does by itself.
    """
    from dask import config
    from dask.distributed import Client

    settings = {
        "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
        "distributed.admin.tick.limit": "10 min",  # a step of torch may keep a worker's loop waiting
        # Dask makes workers return freed memory at once (MALLOC_TRIM_THRESHOLD_); page faults then double the time of
        # an inversion (94 ms a step against 42).
        "distributed.nanny.pre-spawn-environ": {}
        if frugal
        else {k: str(v) for k, (_, v) in devices.KEEP_MEMORY.items()},
    }
    with config.set(settings):
        if scheduler:
            try:
                found = Client(scheduler, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as e:
                raise BatchError(
                    f"no Dask scheduler at {scheduler!r} ({e})",
                    expected="the address of a running scheduler, such as tcp://10.0.0.5:8786",
                    do=f"start one (`dask scheduler`), or unset {ENVIRONMENT} to work on this machine",
                ) from e
            with found:
                yield found
            return
        with _cluster(workers) as cluster, Client(cluster, set_as_default=False) as found:
            found.wait_for_workers(len(cluster.worker_spec), timeout=120)
            yield found


def _cluster(workers: int) -> Any:
    """Workers on this machine: threads of this process for 0, else processes, with CUDA one for each GPU."""
    from dask.distributed import LocalCluster, Nanny, Scheduler, SpecCluster

    workers = number("workers", workers, "whole [0, inf)")
    quiet = {"silence_logs": logging.CRITICAL}
    if workers == 0:
        return LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, **quiet)
    gpus = _gpus()
    count = len(gpus) or workers
    threads = str(max(1, cpus() // count))
    shared = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    shared |= {SHARE: threads, "HRLAB_ROOT": str(root()), "PYTHONHASHSEED": "0"}
    # No memory limit: Dask would kill a worker at its share of the machine, and tensors cannot be spilled anyway.
    options = [{"nthreads": 1, "memory_limit": 0, "env": shared, **quiet} for _ in range(count)]
    for option, gpu in zip(options, gpus, strict=False):
        option["env"] = shared | {"CUDA_VISIBLE_DEVICES": gpu}
    return SpecCluster(
        workers={i: {"cls": Nanny, "options": option} for i, option in enumerate(options)},
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}},
        name="hrlab",
        **quiet,
    )


@functools.cache
def _gpus() -> tuple[str, ...]:
    """The CUDA devices of this process, as $CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [n for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.strip()]
    return tuple(named or map(str, range(torch.cuda.device_count()))) if torch.cuda.is_available() else ()
