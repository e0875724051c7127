"""What the paper's ID retrieval costs on this machine: 100 contents and 50 stylisations of each, through an IR-SE50.

The network has the paper's architecture and random weights, because time and memory do not depend on their values; the
pictures are files of noise of 256 px. Some of the 5,100 are looked up, in a process of its own for each batch size.
Prints milliseconds a picture, the time for all of them, and the peak memory of the process.

    python benchmarks/retrieval.py [--contents 20] [--each 10]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from hrlib import image, optim, retrieval
from hrlib.nets.ir_se import IRSE

PAPER = 100 + 100 * 50


def look_up(folder: str, batch: int, queue: multiprocessing.Queue) -> None:
    """Put (pictures, seconds, peak bytes) of an evaluation into the queue."""
    net = IRSE().eval()
    begun = time.perf_counter()
    for report in retrieval.evaluate(f"{folder}/content", f"{folder}/stylised", net, batch=batch):
        pass
    queue.put((report.total, time.perf_counter() - begun, optim.peak_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", type=int, default=20)
    parser.add_argument("--each", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        g = torch.Generator().manual_seed(0)
        for i in range(asked.contents):
            image.write(torch.rand(1, 3, 256, 256, generator=g) * 2 - 1, Path(folder) / f"content/{i:03d}.png")
            for k in range(asked.each):
                x = torch.rand(1, 3, 256, 256, generator=g) * 2 - 1
                image.write(x, Path(folder) / f"stylised/{i:03d}/{k:02d}.png")
        print(f"{'batch':>6} {'ms a picture':>13} {'the paper, min':>15} {'peak, GB':>9}")
        for batch in (1, 8, 32):
            queue = (context := multiprocessing.get_context("spawn")).Queue()
            process = context.Process(target=look_up, args=(folder, batch, queue))
            process.start()
            total, seconds, peak = queue.get()
            process.join()
            each = seconds / total
            print(f"{batch:6d} {1000 * each:13.1f} {PAPER * each / 60:15.1f} {peak / 1e9:9.2f}")


if __name__ == "__main__":
    main()
