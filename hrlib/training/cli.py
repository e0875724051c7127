"""`hrlab train ...`: one command for each shipped network."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train the shipped networks again.")
Folder = Annotated[Path, typer.Option(help="Working folder: rendered set, checkpoint, log, sample sheets.")]


@app.command("render")
def render_command(
    n: Annotated[int, typer.Option(help="How many portraits.")] = 16_000,
    folder: Folder = Path("build/training/portraits128"),
    resolution: int = 128,
    z_dim: int = 64,
    seed: int = 0,
) -> None:
    """Render the training portraits; goes on where an interrupted run stopped."""
    from rich.progress import track

    from .data import CHUNK, render_set

    for _ in track(
        render_set(folder, n, resolution=resolution, z_dim=z_dim, seed=seed),
        total=-(-n // CHUNK),
        description="portraits",
    ):
        pass


@app.command("portraits")
def portraits_command(
    data: Annotated[Path, typer.Option(help="A folder made by `hrlab train render`.")] = Path(
        "build/training/portraits128"
    ),
    folder: Folder = Path("build/training/portraits_inr128"),
    total_images: Annotated[int, typer.Option(help="Images seen by the generator in all.")] = 130_000,
    warm_images: Annotated[int, typer.Option(help="Of which by regression on rendered pictures.")] = 48_000,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    seed: int = 0,
) -> None:
    """Train the shipped Style-INR-GAN and its discriminator; goes on from the checkpoint if there is one.

    When it ends, copy the pair into data/weights with `hrlab train ship`.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from torchvision.utils import make_grid

    from .. import image
    from ..store import atomic, read_json, write_json
    from . import gan
    from .data import load_set

    folder.mkdir(parents=True, exist_ok=True)
    recipe = gan.Recipe(total_images=total_images, warm_images=warm_images, seed=seed)
    write_json(folder / "recipe.json", gan.summary(recipe))
    portraits, state = load_set(data), gan.start(recipe)
    checkpoint, log = folder / "checkpoint.safetensors", folder / "log.csv"
    spent = 0.0
    if checkpoint.exists():
        facts = read_json(folder / "checkpoint.json")
        state.load(load_file(checkpoint), facts["step"])
        spent = facts["seconds"]
    sums: dict[str, list[float]] = {}
    start = time.perf_counter()
    for row in gan.train(recipe, portraits, state):
        for k, v in row.items():
            sums.setdefault(k, []).append(v)
        done = state.step * recipe.batch >= recipe.total_images
        if state.step % save_every and not done:
            continue
        seconds = spent + time.perf_counter() - start
        means = {k: sum(v) / len(v) for k, v in sums.items()} | {
            "step": state.step,
            "images": row["images"],
            "seconds": round(seconds, 1),
        }
        _append(log, means)
        sums.clear()
        with atomic(checkpoint) as temp:
            save_file(state.tensors(), temp)
        write_json(folder / "checkpoint.json", {"step": state.step, "seconds": seconds})
        with torch.inference_mode():
            z = portraits.z[: 4 * 6]
            fake = state.G_ema.synthesis(state.G_ema.mapping(z), noise=state.G_ema.noise_maps())
            real, _ = portraits.batch(torch.arange(12))
            image.write(
                make_grid(torch.cat([real, fake]), nrow=12, padding=2)[None].clamp(-1, 1), folder / "samples.png"
            )
        typer.echo("  ".join(f"{k} {v:.4g}" for k, v in means.items()))


COLUMNS = ("step", "images", "seconds", "regression", "adversarial", "anchor", "D_fake", "D_real", "accuracy", "R1")


def _append(log: Path, row: dict[str, float]) -> None:
    fresh = not log.exists()
    with open(log, "a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerow({k: row.get(k, "") for k in COLUMNS})


@app.command("ship")
def ship_command(
    folder: Folder = Path("build/training/portraits_inr128"),
    n: Annotated[int, typer.Option(help="Pictures a side for the Frechet distances.")] = 1000,
) -> None:
    """Copy a trained pair into data/weights, measure it, write the model cards."""
    from .ship import ship

    for rung, value in ship(folder, n=n).items():
        typer.echo(f"{value:10.3f}  {rung}")
