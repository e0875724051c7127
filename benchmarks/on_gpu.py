"""Half an hour on one GPU: what a CPU takes days for, in the order of its value.

    python benchmarks/on_gpu.py prepare                       # once, where `make faces` has run: writes build/faces
    python benchmarks/on_gpu.py run --out DIR --minutes 28    # on the GPU: needs build/faces, no network

1. timings: seconds a step and peak memory of inversion and of codes alone, and seconds of a picture (Table I);
2. Table II at 1024 pixels with the paper's 1000 steps, person by person;
3. Fig. 12 with 1000 steps.

Every finished task is one JSON file (and a picture) in DIR; a second run goes on after the first. No task starts that
would probably not end in time. Besides hrlib it needs only torch, timm, numpy, pillow, safetensors and scikit-image.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from hrlib import image, inversion, losses, optim, store, weights
from hrlib.experiments import at_scale, inversions
from hrlib.nets import efficientnet
from hrlib.worlds.pictures import picture

ROOT = Path(__file__).resolve().parents[1]
FACES = ROOT / "build" / "faces"
GENERATOR, NETWORK = FACES / "ffhq_mobile1024.safetensors", FACES / "efficientnet_lite0.safetensors"
Result = tuple[dict, dict[str, bytes]]  # numbers, and files by name
COLUMNS = [c for c in at_scale.COLUMNS if not c.startswith("lpips")]  # its weights stay with the package


def prepare(size: int, *, people: int) -> None:
    """Write half-precision copies of the networks, and the targets, to build/faces."""
    G = weights.load_generator(at_scale.GENERATOR)
    weights.save_network(G, GENERATOR, card="copy of ffhq_mobile1024, research only", half=True, force=True)
    name = "efficientnet_lite0_imagenet"
    state = efficientnet.fill(efficientnet.efficientnet_lite0(), weights.load_state(name)[0], name).state_dict()
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights.save_state(halves, NETWORK, {"card": f"copy of {name}"}, force=True)
    for name in at_scale.PEOPLE[:people]:
        image.write(picture(name, size), target(name))
    print(f"{FACES}: {sum(f.stat().st_size for f in FACES.iterdir()) / 2**20:.0f} MiB")


def target(name: str) -> Path:
    """Where the picture of that name is kept."""
    return FACES / f"{name.replace(':', '_')}.png"


def tasks(*, num_steps: int, size: int, people: int, device: str) -> Iterator[tuple[str, str, Callable[[], Result]]]:
    """(name, kind, what to do), in order; tasks of one kind take about as long."""
    yield "timings", "timings", lambda: timings(size=size, device=device)
    for figure in ("table2", "fig12"):
        chosen = [run for run in at_scale.FIGURES[figure].runs if run.image in at_scale.PEOPLE[:people]]
        for run in sorted(chosen, key=lambda run: at_scale.PEOPLE.index(run.image)):
            here = replace(
                run,
                image=f"file:{target(run.image)}",
                generator=str(GENERATOR),
                perceptual=str(NETWORK),
                size=size,
                input=run.input * size // at_scale.SIZE,
                num_steps=num_steps,
                columns=COLUMNS,
                device=device,
            )
            what = asdict(run) | {"num_steps": num_steps, "size": size, "columns": COLUMNS}
            yield f"{figure}_{store.digest(what)[:12]}", f"input {run.input}", lambda s=here, w=what: inverted(s, w)


def inverted(settings: inversions.Settings, what: dict) -> Result:
    """One inversion; `what`: its settings with the names that the recorded runs have."""
    found = inversions.perform(settings)
    return {"run": what, "values": dict(found.values)}, dict(found.files)


def timings(*, size: int, device: str) -> Result:
    """Seconds a step and peak bytes of inversion, and of codes alone; seconds of one picture. Medians of ten."""
    G = weights.load_generator(GENERATOR, device=device)
    x = image.read(target(at_scale.PEOPLE[0]), size).to(device)
    loss = losses.named(at_scale.DENSE, weights=str(NETWORK)).to(device)
    values = {}
    for name, noise in (("codes", False), ("inversion", True)):  # on a CPU the peak is that of the process so far
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        it = optim.last(inversion.invert(G, x, loss, num_steps=13, optimise_noise=noise, w_samples=500))
        seconds = sorted(row["seconds"] for row in it.history[3:])
        values |= {f"{name}/seconds": seconds[len(seconds) // 2], f"{name}/peak_bytes": optim.peak_bytes(device)}
    with torch.no_grad():
        ws, took = G.w_avg.expand(1, G.num_ws, -1), []
        for _ in range(13):
            begun = time.perf_counter()
            G.synthesis(ws, size=(size, size)).sum().item()  # .item() waits for the GPU
            took.append(time.perf_counter() - begun)
    return {"values": values | {"generation/seconds": sorted(took[3:])[5]}}, {}


def run(out: Path, *, minutes: float, num_steps: int, size: int, people: int, device: str) -> None:
    """Do the tasks that are not in `out` yet, until the time is up."""
    end, longest, left = time.monotonic() + 60 * minutes, {}, 0
    out.mkdir(parents=True, exist_ok=True)
    for name, kind, do in tasks(num_steps=num_steps, size=size, people=people, device=device):
        if (out / f"{name}.json").exists():
            continue
        begun = time.monotonic()
        if begun + longest.get(kind, 0.0) > end or begun >= end:
            left += 1
            continue
        try:
            facts, files = do()
        except torch.cuda.OutOfMemoryError as e:
            facts, files = {"error": str(e)}, {}
        seconds = time.monotonic() - begun
        longest[kind] = max(longest.get(kind, 0.0), seconds)
        for file, data in files.items():
            store.write_bytes(out / f"{name}_{file}", data)
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        facts |= {"seconds": round(seconds, 2), "machine": machine, "torch": torch.__version__}
        store.write_json(out / f"{name}.json", facts)  # last: it marks the task as done
        print(f"{name} ({kind}): {seconds:.1f} s, {json.dumps(facts.get('values', facts.get('error')))}", flush=True)
    print(f"{left} tasks are left; run it again" if left else "all done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "on_gpu")
    parser.add_argument("--minutes", type=float, default=28.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=at_scale.SIZE, help="edge of the pictures, for tests")
    parser.add_argument("--people", type=int, default=len(at_scale.PEOPLE))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.size, people=given.people)
    else:
        run(
            given.out,
            minutes=given.minutes,
            num_steps=given.steps,
            size=given.size,
            people=given.people,
            device=given.device,
        )
