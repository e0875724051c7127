"""How fast and how large a step is: this library beside `reference.py`, which does the same in textbook operations.

    python benchmarks/speed.py                    # every row that this machine can do; half an hour on two cores
    python benchmarks/speed.py --rows shipped     # those whose name has this text
    python benchmarks/speed.py --rounds 5

Each measurement is a process of its own, since peak memory is that of a process's life; library and reference take
turns, so that a busy moment of the machine meets both. Seconds are the median over the steps after the first two;
ratios are between neighbours, with their least and greatest. Memory is the peak beyond that of the process with its
networks loaded. Full-width networks are random: a step takes as long whatever the weights' values.

Results are printed, and kept by machine in benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "speed.json"


@dataclass(frozen=True)
class Row:
    """One thing that is measured twice.

    task: "w+", "w+, n" (inversions), "lso" or "generation". network: "shipped" (thin StyleGAN2 with INR head, thin
    VGG16), "full" (StyleGAN2 and VGG16 of the published widths) or "ffhq" (MobileStyleGAN, EfficientNet-Lite0). size:
    edge in pixels. bf16: the library under bfloat16 autocast; the reference stays in float32.
    """

    task: str
    network: str
    size: int
    batch: int = 1
    steps: int = 12
    bf16: bool = False

    def __str__(self) -> str:
        batch, precision = f"; batch {self.batch}" * (self.batch > 1), "; bfloat16" * self.bf16
        return f"{self.task}; {self.network}; {self.size} px{batch}{precision}"


ROWS = [
    *(Row("w+, n", "shipped", 128, batch, 20) for batch in (1, 2, 4, 8)),
    *(Row(task, "shipped", 128, 1, 20) for task in ("w+", "lso", "generation")),
    *(Row("w+, n", "full", size, 1, steps) for size, steps in ((64, 12), (128, 8), (256, 6))),
    Row("w+, n", "full", 256, 4, 3),
    Row("generation", "full", 256, 1, 10),
    *(Row(task, "ffhq", 1024, 1, 8) for task in ("w+, n", "w+", "generation")),
    Row("w+, n", "ffhq", 1024, 2, 4),
    *(Row("w+, n", network, size, 1, 4, bf16=True) for network, size in (("full", 256), ("ffhq", 1024))),
    *(Row("w+, n", "full", size, 1, 3) for size in (512, 1024)),
]


# --- in a process of its own ------------------------------------------------------------------------------------------


def networks(row: Row, device: str):
    """(generator, loss, target [N, 3, H, W] in [-1, 1])."""
    import torch

    from hrlib import features, losses, weights
    from hrlib.nets.stylegan2 import Generator, channel_plan
    from hrlib.worlds.pictures import picture

    high = row.task == "lso"
    if row.network == "full":
        torch.manual_seed(0)
        G = Generator(z_dim=512, w_dim=512, resolution=row.size, channels=channel_plan(row.size))
        G = G.eval().requires_grad_(False)
        d = losses.Perceptual(features.vgg16("random"), losses.HIGH_LEVEL if high else losses.HRINVERSION)
    elif row.network == "ffhq":
        G = weights.load_generator("ffhq_mobile1024")
        d = losses.named("efficientnet_high" if high else "efficientnet_dense")
    else:
        G = weights.load_generator("portraits_inr128")
        d = losses.named("vgg_high" if high else "vgg_conv", weights="shipped")
    x = torch.cat([picture(f"portrait:{i}", row.size) for i in range(1, row.batch + 1)])
    return G.to(device), d.to(device), x.to(device)


def steps_of(row: Row, which: str, device: str) -> Iterator[None]:
    """The task, one step an iterate; the first comes when the networks are loaded."""
    import torch
    from reference import invert, optimise, synthesis

    from hrlib import devices, inversion, lso

    if which == "ours":
        devices.keep_memory()
    G, d, x = networks(row, device)
    yield
    ws = G.w_avg.repeat(row.batch, G.num_ws, 1)
    if row.task == "generation":
        n = {k: m.expand(row.batch, *m.shape) for k, m in G.noise_maps().items()}
        with torch.inference_mode():
            for _ in range(row.steps):
                synthesis(G, ws, n) if which == "reference" else G.synthesis(ws, noise=n)
                yield
    elif row.task == "lso":
        run = optimise if which == "reference" else lso.optimise
        yield from (None for _ in run(G, ws, x, d, lam_reg=1e-4, num_steps=row.steps))
    else:
        run = invert if which == "reference" else inversion.invert
        with torch.autocast(device, torch.bfloat16, enabled=row.bf16 and which == "ours"):
            yield from (None for _ in run(G, x, d, num_steps=row.steps, optimise_noise=row.task == "w+, n"))


def measure(row: Row, which: str, device: str) -> dict[str, float]:
    """{"seconds": of a step, "memory": bytes}."""
    import torch

    from hrlib import optim

    cuda = torch.device(device).type == "cuda"
    stepper, times = steps_of(row, which, device), []
    next(stepper)
    loaded = torch.cuda.memory_allocated() if cuda else optim.peak_bytes()
    begun = time.perf_counter()
    for _ in stepper:
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return {"seconds": statistics.median(times[2:]), "memory": optim.peak_bytes(device) - loaded}


# --- all of them ------------------------------------------------------------------------------------------------------


def ask(row: Row, which: str, device: str) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "--measure", json.dumps([asdict(row), which, device])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{row}, {which}: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(row: Row, *, rounds: int, device: str) -> dict[str, float]:
    """A row's result: medians, and ratios reference / ours with their least and greatest."""
    pairs = [{which: ask(row, which, device) for which in ("reference", "ours")} for _ in range(rounds)]
    found = {}
    for what in ("seconds", "memory"):
        for which in ("reference", "ours"):
            found[f"{which}_{what}"] = statistics.median(p[which][what] for p in pairs)
        ratios = sorted(p["reference"][what] / p["ours"][what] for p in pairs)
        found |= {f"{what}_ratio": statistics.median(ratios), f"{what}_least": ratios[0], f"{what}_most": ratios[-1]}
    return found


def machine(device: str) -> str:
    """What computes, in words."""
    import torch

    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    )
    name = names[0].partition(": ")[2] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="only rows whose name has this text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        row, which, device = json.loads(asked.measure)
        print(json.dumps(measure(Row(**row), which, device)))
        return

    from hrlib import devices, store

    device = str(devices.choose(asked.device))
    found = store.read_json(RESULTS) if RESULTS.exists() else {}
    here = found.setdefault(machine(device), {})
    for row in (row for row in ROWS if asked.rows in str(row)):
        if row.network == "ffhq" and not installed("ffhq_mobile1024"):
            print(f"{row}: left out; `make faces` installs its networks")
            continue
        here[str(row)] = asdict(row) | compare(row, rounds=asked.rounds, device=device)
        store.write_json(RESULTS, found)
        print(line(row, here[str(row)]), flush=True)


def installed(name: str) -> bool:
    """Whether the file of that name in the catalogue is on this machine."""
    from hrlib import weights
    from hrlib.errors import MissingWeights

    try:
        return weights.path(name).exists()
    except MissingWeights:
        return False


def line(row: Row, r: dict[str, float]) -> str:
    """A row's result in words."""
    spread = lambda what: f"{r[f'{what}_ratio']:.2f} ({r[f'{what}_least']:.2f} to {r[f'{what}_most']:.2f})"
    return (
        f"{row!s:32s} {1000 * r['ours_seconds']:7.0f} ms, {r['ours_memory'] / 2**20:6.0f} MiB; reference / ours: "
        f"time {spread('seconds')}, memory {spread('memory')}"
    )


if __name__ == "__main__":
    main()
