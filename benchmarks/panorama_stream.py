"""A panorama streamed into a TIFF: seconds, and peak memory compared with that of one tile.

    python benchmarks/panorama_stream.py            # 6143x1677, the size of Fig. 10
    python benchmarks/panorama_stream.py --full     # 24,400x4,100: 100 megapixels

Uses torch's threads (OMP_NUM_THREADS). Checks the size of the file, and one of its tiles against that tile drawn alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import tifffile
import torch

from hrlib import optim
from hrlib.worlds import scenes

TILE = 512


def peak() -> float:
    """Peak memory of this process so far, in MiB."""
    return optim.peak_bytes() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="100 megapixels instead of 10")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the TIFF here")
    options = parser.parse_args()
    size = (4100, 24_400) if options.full else (1677, 6143)
    view = scenes.sample(3, options.seed)[2]
    pixels = size[0] * size[1]

    imported = peak()
    stream = scenes.tiles(view, size, TILE)
    *_, tile = next(stream)
    stream.close()
    one = peak()
    print(f"{torch.get_num_threads()} threads; libraries {imported:.0f} MiB, and one tile of {TILE}: {one:.0f} MiB")

    with tempfile.TemporaryDirectory() as folder:
        path = options.out or Path(folder) / "panorama.tif"
        start, cpu = time.perf_counter(), time.process_time()
        path = scenes.write_panorama(view, size, path)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"{size[1]}x{size[0]} = {pixels / 1e6:.1f} megapixels: {seconds:.1f} s ({cpu:.1f} s of CPU), "
            f"peak {peak():.0f} MiB ({peak() - one:+.0f} against one tile); "
            f"as floats the picture would take {pixels * 12 / 2**20:.0f} MiB; "
            f"file {os.path.getsize(path) / 2**20:.1f} MiB"
        )
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert page.shape == (*size, 3)
            stored, _, _ = page.decode(_read(file, page.dataoffsets[0], page.databytecounts[0]), 0)
        drawn = (tile.permute(1, 2, 0) * 127.5 + 127.5).round().to(torch.uint8)
        assert torch.equal(torch.from_numpy(stored[0].copy()), drawn), (
            "the first tile of the file is not the tile drawn alone"
        )


def _read(file: tifffile.TiffFile, offset: int, count: int) -> bytes:
    file.filehandle.seek(offset)
    return file.filehandle.read(count)


if __name__ == "__main__":
    main()
