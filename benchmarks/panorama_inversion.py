"""A tiled step of inversion against an untiled one: seconds a megapixel, peak memory, and its growth in bytes a pixel.

    python benchmarks/panorama_inversion.py                 # 0.26 to 3.4 megapixels, both ways (the untiled needs 8 GB)
    python benchmarks/panorama_inversion.py --full          # also 6143x1677, tiled
    python benchmarks/panorama_inversion.py --wide          # one step of 6143x1677 at the paper's widths, within 8 GB

Every measurement has a process of its own and takes two steps, of which the second is timed. --wide takes one step with
the full VGG16 and the channels of a generator of 1024 pixels, with random weights: time and memory do not depend on
their values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from hrlib import optim

SIZES = [(512, 512), (1024, 1024), (1677, 2048)]


def measure(height: int, width: int, tiled: bool) -> dict[str, float]:
    """{"seconds", "peak", "planned"} of a step, in this process."""
    import torch

    from hrlib import inversion, weights
    from hrlib.experiments import panoramas

    settings, size = panoramas.Settings(num_steps=3), (height, width)
    planned = panoramas.plan(settings, size, memory="16GB")
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = {"G": weights.load_generator(settings.generator), "loss": settings.loss(size)}
    how = planned.apply(**plain) if tiled else plain
    steps = inversion.invert(x=x, **how, **settings.options())
    next(steps)
    begun = time.perf_counter()
    next(steps)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": optim.peak_bytes(), "planned": planned.peak}


def measure_wide(height: int, width: int, memory: str) -> dict[str, float]:
    """{"seconds", "peak", "planned"} of the first step of networks as wide as the paper's, in this process."""
    import torch

    from hrlib import features, inversion, losses, nets
    from hrlib.nets.stylegan2 import channel_plan
    from hrlib.tiling import budget

    G = nets.StyleINR(z_dim=512, w_dim=512, resolution=1024, channels=channel_plan(1024)).eval().requires_grad_(False)
    loss, size = losses.Perceptual(features.vgg16("random")), (height, width)
    planned = budget.plan(G, loss, size, memory=memory)
    print(planned, file=sys.stderr, flush=True)
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    begun = time.perf_counter()
    next(inversion.invert(x=x, num_steps=3, w_samples=1000, **planned.apply(G, loss)))
    return {"seconds": time.perf_counter() - begun, "peak": optim.peak_bytes(), "planned": planned.peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 10.3 megapixels")
    parser.add_argument("--one", nargs=3, metavar=("HEIGHT", "WIDTH", "TILED"), help=argparse.SUPPRESS)
    parser.add_argument("--wide", action="store_true", help="one step at the paper's widths, and nothing else")
    parser.add_argument("--megapixels", type=float, default=10.3, help="of --wide")
    options = parser.parse_args()
    if options.wide:
        height = round((options.megapixels * 1e6 * 1677 / 6143) ** 0.5)
        print(json.dumps(measure_wide(height, round(height * 6143 / 1677), "8GB")))
        return
    if options.one:
        height, width, tiled = map(int, options.one)
        print(json.dumps(measure(height, width, bool(tiled))))
        return
    found = {}
    for height, width in SIZES + [(1677, 6143)] * options.full:
        for tiled in (1, 0):
            if not tiled and height * width > 4e6:
                continue
            command = [sys.executable, __file__, "--one", str(height), str(width), str(tiled)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[height * width, tiled] = m = json.loads(done.stdout.splitlines()[-1])
            each, name = m["seconds"] / (height * width / 1e6), "tiled" if tiled else "untiled"
            planned = f", planned {m['planned'] / 1e9:.2f}" if tiled else ""
            print(f"{width}x{height} {name:8s} {each:.2f} s/MPix, peak {m['peak'] / 1e9:.2f} GB{planned}", flush=True)
    sizes = sorted({pixels for pixels, tiled in found if tiled})
    for pixels in sizes:
        if (pixels, 0) in found:
            ratio = found[pixels, 1]["seconds"] / found[pixels, 0]["seconds"]
            print(f"{pixels / 1e6:.2f} MPix: a tiled step takes {ratio:.2f} times an untiled one")
    low, high = sizes[-2], sizes[-1]
    slope = (found[high, 1]["peak"] - found[low, 1]["peak"]) / (high - low)
    print(f"peak of the tiled step grows by {slope:.0f} bytes a pixel (the target's features included)")


if __name__ == "__main__":
    main()
