"""Portraits drawn a second, domain by domain, at 128 x 128 with the default arguments.

Two columns: a CPU-second of one thread, which other work on the machine disturbs least, and a second of the clock with
two threads, which wants a quiet machine. The last column compares each domain with the photo in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from hrlib.worlds import portraits

COUNT, ROUNDS = 16, 3


def rate(domain: str, threads: int, clock: Callable[[], float]) -> float:
    """Portraits a second of that clock: the median of a few rounds, the first left out."""
    torch.set_num_threads(threads)
    people = portraits.sample(COUNT, seed=5)
    rates = []
    for _ in range(ROUNDS + 1):
        start = clock()
        portraits.render(people, 128, domain=domain)
        rates.append(COUNT / (clock() - start))
    return statistics.median(rates[1:])


def main() -> None:
    print(f"{'domain':12s} {'1 thread, a CPU-second':>24s} {'2 threads, a second':>20s} {'to the photo':>13s}")
    reference = None
    for domain in portraits.DOMAINS:
        one, two = rate(domain, 1, time.process_time), rate(domain, 2, time.perf_counter)
        reference = reference or one
        print(f"{domain:12s} {one:24.1f} {two:20.1f} {one / reference:13.2f}")


if __name__ == "__main__":
    main()
