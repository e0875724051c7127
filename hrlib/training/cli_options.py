"""Options and helpers that the commands of `hrlab train` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from accelerate import Accelerator

ROOT = Path("build/training")
Option = typer.Option
Threads = Annotated[int, Option(help="CPU threads; 0 lets PyTorch choose.", min=0, max=1024)]
Thread = Annotated[int, Option(help="CPU threads; they change the last digits of the results.", min=1, max=1024)]
Seed = Annotated[int, Option(help="Seed of the initial weights and of all draws.")]
Device = Annotated[str, Option(help='"cpu", "cuda", or "auto": a GPU if there is one.')]
Work = Annotated[Path, Option(help="Folder for rendered sets and training folders; unfinished ones in it are resumed.")]
Length = Annotated[int, Option(help="Length of the training, in pictures; 0 for the shipped network's.")]
Ship = Annotated[bool, Option(help="Copy the trained network into data/weights and measure it.")]
Force = Annotated[bool, Option("--force", help="Replace the network in data/weights and the files that belong to it.")]
SetForce = Annotated[
    bool, Option("--force", help="Replace another set, or other files with the same names, in the folder.")
]


def show(found: dict[str, float]) -> None:
    """Print measured values, one a line."""
    for what, value in found.items():
        typer.echo(f"{value:10.3f}  {what}")


def track(chunks: Iterable[int], what: str, total: int | None) -> None:
    """Run a generator of numbers done to its end, with a progress bar on a terminal."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(what, total=total)
        for done in chunks:
            progress.update(task, completed=done)


def set_threads(threads: int) -> None:
    """Let PyTorch use so many CPU threads; 0 leaves the number as it is."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def accelerator_for(device: str, threads: int) -> Accelerator:
    """This process's place among those that `accelerate launch` or torchrun started: device, rank, exchange."""
    from accelerate import Accelerator

    from .. import devices

    on_cpu = devices.choose(device).type == "cpu"  # which GPU is accelerate's choice: one a process
    set_threads(threads)
    return Accelerator(cpu=on_cpu, mixed_precision="no")
