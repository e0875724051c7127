"""How many portraits of each domain are drawn in a second, at 128 x 128 with the default arguments.

Three rates: per CPU-second of one thread, which other work on the machine disturbs least; per second of the clock with
two threads; and with two processes of one thread each, the fastest way for two cores because the operations are small.
The latter two need a quiet machine. The last column compares each domain with photos in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from hrlib.worlds import portraits

COUNT, ROUNDS = 16, 3


def rate(domain: str, threads: int, clock: Callable[[], float]) -> float:
    """Portraits a second of that clock: the median of a few rounds, without the first."""
    torch.set_num_threads(threads)
    people = portraits.sample(COUNT, seed=5)
    rates = []
    for _ in range(ROUNDS + 1):
        start = clock()
        portraits.render(people, 128, domain=domain)
        rates.append(COUNT / (clock() - start))
    return statistics.median(rates[1:])


def main() -> None:
    heads = ("1 thread, a CPU-second", "2 threads, a second", "2 processes, a second", "to the photo")
    print(f"{'domain':12s} " + " ".join(f"{head:>22s}" for head in heads))
    reference, pool = None, ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    for domain in portraits.DOMAINS:
        one, two = rate(domain, 1, time.process_time), rate(domain, 2, time.perf_counter)
        both = sum(pool.map(partial(rate, threads=1, clock=time.perf_counter), [domain, domain]))
        reference = reference or one
        print(f"{domain:12s} {one:22.1f} {two:22.1f} {both:22.1f} {one / reference:22.2f}")


if __name__ == "__main__":
    main()
