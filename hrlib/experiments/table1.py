"""What a row of Table I costs on this machine: seconds and peak memory, each measured in a process of its own.

A fresh process, because peak memory is that of a process's whole life, and one that has worked before keeps memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import BatchError, UnknownName, nearest

ROWS = ("training", "inversion", "lso", "generation")


@dataclass(frozen=True)
class Cost:
    """What was measured.

    seconds: of one step: training on a batch, an iteration of an inversion or of LSO, or drawing a picture. The mean in
    training, where one step in sixteen also computes R1, else the median. memory: peak in bytes, beyond that of the
    process before it loads the networks, so that libraries do not count. steps: how many were measured.
    """

    seconds: float
    memory: int
    steps: int


def cost(
    row: str, generator: str, *, steps: int, batch: int = 1, device: str = "cpu", perceptual: str = "shipped"
) -> Cost:
    """Measure a row of Table I for a generator.

    Args:
        row: "training": adversarial training of a network like `generator` from random weights on batches of `batch`
            random pictures (time and memory do not depend on the values); "inversion": Eq. (1), w+ and noise maps, VGG
            conv loss, one picture; "lso": Eq. (8) with noise maps and d_h, one picture, in the generator itself instead
            of a mixed one; "generation": from z to one picture.
        generator: catalogue name or file.
        steps: how many to measure, after a first one that is not measured.
        device: "cpu", "cuda" or another name that torch knows.
        perceptual: VGG16's weights in "inversion" and "lso".

    Raises:
        UnknownName: the row. BatchError: the process failed; the message has the end of its error output.
    """
    if row not in ROWS:
        raise UnknownName(f"row {row!r}", expected=f"one of {', '.join(ROWS)}", do=nearest(row, list(ROWS)))
    import torch

    request = dict(row=row, generator=str(generator), steps=steps, batch=batch, device=str(device))
    request |= dict(perceptual=perceptual, threads=torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(request)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(request["threads"])},
    )
    if done.returncode:
        raise BatchError(
            f"measuring {row} of {generator} ended with {done.returncode}: {done.stderr.strip()[-800:]}",
            expected="a process that prints its cost",
            do="correct what the end of its error output names",
        )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


# --- in the process ---------------------------------------------------------------------------------------------------


def _measure(
    row: str, generator: str, steps: int, batch: int, device: str, perceptual: str, threads: int
) -> dict[str, float]:
    import torch

    from .. import optim

    torch.set_num_threads(threads)
    before = optim.peak_bytes(device)
    steppers = {
        "training": lambda: _training(generator, batch, device),
        "inversion": lambda: _inversion(generator, steps, device, perceptual),
        "lso": lambda: _lso(generator, steps, device, perceptual),
        "generation": lambda: _generation(generator, device),
    }
    stepper, times = steppers[row](), []
    next(stepper)
    for _ in range(steps):
        begun = time.perf_counter()
        next(stepper)
        times.append(time.perf_counter() - begun)
    seconds = statistics.fmean(times) if row == "training" else statistics.median(times)
    return asdict(Cost(seconds, optim.peak_bytes(device) - before, steps))


def _training(generator: str, batch: int, device: str) -> Iterator[None]:
    import numpy as np

    from ..store import write_json
    from ..training import gan, picture_sets
    from ..training.recipe import GanRecipe

    like = {k: v for k, v in gan.like(generator).items() if k != "source"}
    recipe = GanRecipe(**like, batch=batch, total_images=10**9, ada_target=0.0)
    R = recipe.resolution
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / picture_sets.STATUS, {"what": {"cost": generator}, "done": 2 * batch})
        pictures = np.random.default_rng(0).integers(0, 256, (2 * batch, 3, R, R), dtype=np.uint8)
        state = gan.start(recipe, device=device)
        for _ in gan.train(recipe, picture_sets.PictureSet(folder, pictures, None), state):
            _synchronise(device)
            yield


def _inversion(generator: str, steps: int, device: str, perceptual: str) -> Iterator[None]:
    from .. import inversion, losses, weights
    from ..worlds.pictures import picture

    G = weights.load_generator(generator, device=device)
    loss = losses.named("vgg_conv", weights=perceptual).to(device)
    x = picture("photo:astronaut", G.resolution).to(device)
    for _ in inversion.invert(G, x, loss, num_steps=steps + 1, optimise_noise=True):
        _synchronise(device)
        yield


def _lso(generator: str, steps: int, device: str, perceptual: str) -> Iterator[None]:
    from .. import losses, lso, weights
    from ..worlds.pictures import picture

    G = weights.load_generator(generator, device=device)
    loss = losses.named("vgg_high", weights=perceptual).to(device)
    x, ws = picture("photo:astronaut", G.resolution).to(device), G.w_avg.expand(1, G.num_ws, -1)
    for _ in lso.optimise(G, ws, x, loss, lam_reg=1e-4, num_steps=steps + 1):
        _synchronise(device)
        yield


def _generation(generator: str, device: str) -> Iterator[None]:
    import torch

    from .. import weights

    G = weights.load_generator(generator, device=device)
    z = torch.randn(1, G.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
    while True:
        with torch.inference_mode():
            G.synthesis(G.mapping(z))
        _synchronise(device)
        yield


def _synchronise(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
