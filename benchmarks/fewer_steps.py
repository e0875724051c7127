"""How soon a picture is as good: the projector's schedule in textbook operations, and this library's for few steps.

    python benchmarks/fewer_steps.py                  # both worlds; an hour on a core
    python benchmarks/fewer_steps.py --world shipped
    python benchmarks/fewer_steps.py --fresh          # measure again what was measured here before

The measure is the time to the reference's final PSNR. Rates fall towards the end of a run, so a run is as good as its
end: each line is a run of its own length. The lines in between say which part does what: the library's faster steps,
the schedule `inversion.QUICK`, the start (`hrlib.starts`). No training and no choice of settings has seen these
pictures. Run it on a quiet machine.

Results are printed, and kept by machine in benchmarks/results/fewer_steps.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from reference import invert
from speed import installed, machine
from torch import Tensor

from hrlib import devices, losses, metrics, optim, store, weights
from hrlib.experiments import at_scale, own_size
from hrlib.worlds.pictures import picture

RESULTS = Path(__file__).parent / "results" / "fewer_steps.json"
# world -> (generator, groups of pictures that are inverted together, steps of the reference, of the library)
WORLDS = {
    "shipped": ("portraits_inr128", [[f"portrait:{i}" for i in range(901, 909)]], 1000, (100, 150, 200)),
    "ffhq": (at_scale.GENERATOR, [["imagined:37"], ["imagined:42"]], 300, (40, 100, 200)),
}
MEASURED = ("seconds", "psnr", "lpips")  # a number a group of pictures, and a picture
HALF = "few steps, start, bfloat16"


def runs(world: str) -> Iterator[tuple[str, int, dict]]:
    """(line, steps, settings); no settings for the reference."""
    _, _, reference, ours = WORLDS[world]
    projector = {"lr": 0.1, "beta2": 0.999, "noise_gain": 1.0, "lr_ramp_down": 0.25, "start": own_size.MEAN}
    yield "reference, the projector's schedule", reference, {}
    if world == "shipped":  # at 1024 pixels these two would take as long as the rest
        yield "the projector's schedule", ours[-1], projector
        yield "few steps", ours[-1], {"start": own_size.MEAN}
    for steps in ours:
        yield "few steps, start", steps, {}
    if world == "shipped":  # what the precision costs, not what it gains: benchmarks/speed.py times a step
        yield HALF, ours[-1], {}


def invert_with(world: str, line: str, steps: int, how: dict, x: Tensor, device: str) -> tuple[Tensor, float]:
    """(reconstruction [N, 3, H, W] in [-1, 1], seconds without loading)."""
    (s,) = own_size.grid(["portrait:1"], generator=WORLDS[world][0], num_steps=steps)
    G, d = own_size.generator_of(s.generator, device), own_size.loss_of(s.loss, s.perceptual, None, s.seed, device)
    begun = time.perf_counter()
    if line.startswith("reference"):
        free = not s.normalise_noise
        for image in invert(G, x, d, num_steps=steps, eps_initial=0.0 if free else 0.05, free_noise=free):
            pass
    else:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=line == HALF):
            image = optim.solve(own_size.inversion_of(replace(s, **how), x)).image.float()
    return image.clamp(-1, 1), time.perf_counter() - begun


def lpips(a: Tensor, b: Tensor, world: str) -> Tensor:
    """[N]: LPIPS on the shipped VGG16 at 128 pixels, ST-LPIPS at 1024."""
    measure = losses.LPIPS("thin" if world == "shipped" else "st_alex")
    with torch.no_grad():
        return torch.stack(list(measure.distances(a, b).values())).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(WORLDS), action="append")
    parser.add_argument(
        "--groups", type=int, choices=range(1, 9), metavar="1..8", help="only the first groups of pictures of a world"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what was measured on this machine")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    device = str(devices.choose(asked.device))
    devices.keep_memory()
    found = store.read_json(RESULTS) if RESULTS.exists() else {}
    here = found.setdefault(machine(device), {})
    for world in asked.world or WORLDS:
        generator, groups, _, _ = WORLDS[world]
        if generator == at_scale.GENERATOR and not installed(generator):
            print(f"{world}: left out; `make faces` installs its networks")
            continue
        G = weights.load_generator(generator, device)
        before = {(row["line"], row["steps"]): row for row in ([] if asked.fresh else here.get(world, []))}
        listed = list(runs(world))
        empty = lambda line, steps: {"line": line, "steps": steps, "pictures": [], **{name: [] for name in MEASURED}}
        rows = here[world] = [before.get((line, steps)) or empty(line, steps) for line, steps, _ in listed]
        for row, (line, steps, how) in zip(rows, listed, strict=True):
            for group in groups[: asked.groups]:
                if not set(group) & set(row["pictures"]):
                    x = torch.cat([picture(name, G.resolution) for name in group]).to(device)
                    image, seconds = invert_with(world, line, steps, how, x, device)
                    measured = {"seconds": [seconds], "psnr": metrics.psnr(image, x), "lpips": lpips(image, x, world)}
                    row["pictures"] += group
                    for name in MEASURED:
                        row[name] += [float(value) for value in measured[name]]
                    store.write_json(RESULTS, found)
            print(said(world, row, rows[0]), flush=True)


def said(world: str, row: dict, reference: dict) -> str:
    """A line of the table; the ratio holds once all pictures of both rows are measured."""
    mean = lambda values: sum(values) / len(values)
    return (
        f"{world:8s} {row['line']:36s} {row['steps']:5d} steps {sum(row['seconds']):7.1f} s "
        f"(1/{sum(reference['seconds']) / sum(row['seconds']):.1f}), PSNR {mean(row['psnr']):.2f} dB "
        f"({min(row['psnr']):.1f} to {max(row['psnr']):.1f}), LPIPS {mean(row['lpips']):.4f}, n = {len(row['psnr'])}"
    )


if __name__ == "__main__":
    main()
