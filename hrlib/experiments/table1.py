"""What a row of Table I costs on the machine at hand: seconds and peak memory, measured in a process of its own.

A fresh process, because a process that has done something else keeps memory for later, and a notebook's has done a lot.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import BatchError, UnknownName, nearest

ROWS = ("training", "inversion", "lso", "generation")


@dataclass(frozen=True)
class Cost:
    """What was measured.

    seconds: of a step: of training on one batch, of one iteration of an inversion or of LSO, of drawing one picture.
    The mean in training, where one step in sixteen pays for R1, else the median. memory: bytes at the peak, beyond what
    the process took before (parameters of the networks are counted, the libraries are not).
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
            random pictures (values do not matter); "inversion": Eq. (1), w+ and noise maps, VGG conv loss, one picture;
            "lso": Eq. (8) with noise maps and d_h, one picture (the numbers of the mixed generator do not matter);
            "generation": z to one picture.
        generator: catalogue name or file.
        steps: how many are measured, after one that is not.
        perceptual: VGG16's weights in "inversion" and "lso".

    Raises:
        UnknownName: the row. BatchError: the process failed; its last words are in the message.
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
            do="see the last words above",
        )
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


# --- in the process ---------------------------------------------------------------------------------------------------


def _measure(
    row: str, generator: str, steps: int, batch: int, device: str, perceptual: str, threads: int
) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    steppers = {
        "training": lambda: _training(generator, batch, device),
        "inversion": lambda: _inversion(generator, steps, device, perceptual),
        "lso": lambda: _lso(generator, steps, device, perceptual),
        "generation": lambda: _generation(generator, device),
    }
    with _Peak(device) as peak:
        stepper, times = steppers[row](), []
        next(stepper)
        for _ in range(steps):
            begun = time.perf_counter()
            next(stepper)
            times.append(time.perf_counter() - begun)
    seconds = statistics.fmean(times) if row == "training" else statistics.median(times)
    return asdict(Cost(seconds, peak.bytes, steps))


def _training(generator: str, batch: int, device: str) -> Iterator[None]:
    import numpy as np

    from ..store import write_json
    from ..training import data, gan
    from ..training.recipe import Recipe

    like = {k: v for k, v in gan.like(generator).items() if k != "source"}
    recipe = Recipe(**like, batch=batch, total_images=10**9, ada_target=0.0)
    R = recipe.resolution
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / data.STATUS, {"what": {"cost": generator}, "done": 2 * batch})
        pictures = np.random.default_rng(0).integers(0, 256, (2 * batch, 3, R, R), dtype=np.uint8)
        state = gan.start(recipe, device=device)
        for _ in gan.train(recipe, data.RenderedSet(folder, pictures, None), state):
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


class _Peak:
    """Peak memory of the block beyond what there was before: the CUDA allocator's, or the resident set's.

    The resident set is looked at every few milliseconds: the system's own high-water mark (`ru_maxrss`) survives fork
    and exec, so a small child of a large notebook would report the notebook's.
    """

    bytes = 0

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.device(device).type == "cuda"
        self.ended = threading.Event()

    def __enter__(self) -> _Peak:
        import psutil

        self.resident: Callable[[], int] = lambda: psutil.Process().memory_info().rss
        self.before = 0 if self.cuda else self.resident()
        self.watch = threading.Thread(target=self._look, daemon=True)
        if not self.cuda:
            self.watch.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(0.003):
            self.bytes = max(self.bytes, self.resident() - self.before)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.cuda:
            import torch

            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self.watch.join()


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
