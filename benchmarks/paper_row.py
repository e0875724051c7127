"""How long a row of Table II would take at the paper's scale on this machine.

StyleGAN2 of 1024 px and VGG16 have the paper's architectures and random weights: the time of a step does not depend on
their values, so no download is needed. Each row is tried for three steps in a process of its own, by the function with
which a sweep predicts its time. Prints seconds a step, the time of a row, and peak memory.

    python benchmarks/paper_row.py [--images 50] [--device cuda]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import torch

from hrlib import optim, weights
from hrlib.experiments import inversions
from hrlib.features import vgg16
from hrlib.nets.stylegan2 import Generator

SIZE, REDUCED, STEPS = 1024, 256, 1000
ROWS = [  # loss, edge of its input, whether noise maps are optimised with w
    ("image2stylegan", REDUCED, False),
    ("vgg_relu", REDUCED, True),
    ("vgg_conv", REDUCED, True),
    ("vgg_conv", SIZE, True),
]


def networks(folder: Path) -> dict[str, str]:
    """Random networks of the paper's size as files."""
    torch.manual_seed(0)
    channels = {2**k: min(2**15 // 2**k, 512) for k in range(2, 11)}  # config F of StyleGAN2
    G = Generator(z_dim=512, w_dim=512, resolution=SIZE, channels=channels)
    generator = weights.save_network(G, folder / "generator.safetensors", card="random", force=True)
    state = vgg16("random").net.state_dict()
    perceptual = weights.save_state(state, folder / "vgg16.safetensors", force=True)
    return {"generator": str(generator), "perceptual": str(perceptual)}


def predict(run: inversions.Settings) -> tuple[float, int]:
    """(seconds the run will take, peak bytes)."""
    return inversions.estimate(run), optim.peak_bytes(run.device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{SIZE} px, {STEPS} steps, {asked.images} images a row; {threads} threads")
    with tempfile.TemporaryDirectory() as name:
        files = networks(Path(name))
        for loss, edge, noise in ROWS:
            (run,) = inversions.grid(
                images=["portrait:21"],
                losses=[loss],
                inputs=[edge],
                noise=[noise],
                size=SIZE,
                num_steps=STEPS,
                lr=0.1,
                columns=["psnr"],
                device=asked.device,
                **files,
            )
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: its own peak memory
                seconds, peak = pool.apply(predict, (run,))
            what = f"{loss}, input {edge}, {'w and n' if noise else 'w'}"
            print(
                f"{what:36s} {seconds / STEPS:7.2f} s a step, {seconds / 60:8.1f} min an image, "
                f"{seconds * asked.images / 3600:7.1f} h a row, peak {peak / 2**30:.1f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
