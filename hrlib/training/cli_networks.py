"""The commands of `hrlab train` for the shipped networks that are not generators of portraits or scenes: INR heads,
perceptual, identity and pose networks, Table III's two baselines, and the 3D-aware GAN."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_options import (
    ROOT,
    Device,
    Force,
    Length,
    Option,
    Seed,
    Ship,
    Thread,
    Threads,
    Work,
    accelerator_for,
    set_threads,
    show,
    track,
)

if TYPE_CHECKING:
    from .picture_sets import PictureSet

app = typer.Typer()


@app.command("style-inr")
def style_inr_command(
    source: Annotated[
        str,
        Option(
            "--from",
            help="A StyleGAN2 or MobileStyleGAN: a catalogue name, one of our .safetensors files, an NVlabs .pkl or a "
            "rosinality .pt.",
        ),
    ],
    out: Annotated[Path, Option(help="The file to write, .safetensors; its card, .md, is written beside it.")],
    folder: Annotated[
        Path | None, Option(help="A folder for this run only; by default build/training/NAME of the file.")
    ] = None,
    steps: Annotated[
        int | None,
        Option(help="Steps of the training; by default 1000, and none for a MobileStyleGAN, whose head starts exact."),
    ] = None,
    hidden: Annotated[
        int | None, Option(help="Width of the head's layers; by default 64, and 32 for a MobileStyleGAN.")
    ] = None,
    n: Annotated[
        int | None, Option(help="Pictures on which the head is measured; by default 256, and 20 at 1024 pixels.")
    ] = None,
    data: Annotated[Path | None, Option(help="Also measure Frechet distances to this set.")] = None,
    seed: Seed = 0,
    threads: Threads = 0,
    device: Device = "auto",
    force: Annotated[
        bool, Option("--force", help="Replace the file and its card, and another run in the folder.")
    ] = False,
) -> None:
    """Train an INR head on a StyleGAN2's own samples, so that it draws any canvas; make one for a MobileStyleGAN."""
    from .. import weights
    from ..store import destination
    from . import inr_head
    from .picture_sets import load_set

    out = destination(out, ".safetensors")
    found = inr_head.run(
        source,
        out,
        folder or ROOT / out.stem,
        inr_head.recipe_for(weights.load_generator(source), steps=steps, hidden=hidden, seed=seed),
        device=accelerator_for(device, threads).device,
        n=n,
        data=load_set(data) if data else None,
        force=force,
        tell=typer.echo,
    )
    show(found)


@app.command("perceptual")
def perceptual_command(
    which: Annotated[str, typer.Argument(help='"vgg16", "resnet50" or "deit".', metavar="WHICH")],
    folder: Annotated[
        Path | None, Option(help="A folder for this run only; by default build/training/WHICH_thin.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="The file to write; by default data/weights/WHICH_thin.safetensors.")
    ] = None,
    steps: Annotated[int | None, Option(help="Steps of the training; by default the shipped network's.")] = None,
    seed: Seed = 0,
    threads: Thread = 1,
    force: Annotated[bool, Option("--force", help="Replace the file and its card.")] = False,
) -> None:
    """Train and ship a thin perceptual network on procedural images; an interrupted run resumes."""
    from . import perceptual

    how = dict(folder=folder, steps=steps, seed=seed, threads=threads)
    show(perceptual.run(which, out, **how, force=force, tell=typer.echo))


@app.command("identity")
def identity_command(
    folder: Annotated[Path, Option(help="A folder for this run only: views, checkpoint, log.")] = ROOT / "identity",
    out: Annotated[
        Path | None, Option(help="The file to write; by default data/weights/identity_thin.safetensors.")
    ] = None,
    seed: Seed = 0,
    threads: Thread = 1,
    force: Annotated[bool, Option("--force", help="Replace the file and its card.")] = False,
) -> None:
    """Render, train and ship the identity network; an interrupted run resumes."""
    from . import identity

    recipe = identity.IdentityRecipe(seed=seed)
    rates = identity.run(folder, out, recipe=recipe, threads=threads, force=force, tell=typer.echo)
    show({what: sum(found) / len(found) for what, found in rates.items()})


@app.command("pose")
def pose_command(
    folder: Annotated[Path, Option(help="Folder for cached features.")] = ROOT / "pose",
    out: Annotated[
        Path | None, Option(help="The file to write; by default data/weights/pose_thin.safetensors.")
    ] = None,
    threads: Threads = 0,
    force: Annotated[bool, Option("--force", help="Replace the file and its card.")] = False,
) -> None:
    """Render, fit and ship the pose reader."""
    from . import pose

    set_threads(threads)
    typer.echo(pose.run(folder, out, force=force).to_string(index=False))


@app.command("start")
def start_command(
    generator: Annotated[str, typer.Argument(help="A catalogue name or a weight file.", metavar="GENERATOR")],
    out: Annotated[
        Path | None, Option(help="The file to write; by default data/weights/GENERATOR_start.safetensors.")
    ] = None,
    folder: Annotated[
        Path | None, Option(help="Folder for the samples' features; by default build/training/start/GENERATOR_start.")
    ] = None,
    loss: Annotated[
        str, Option(help="The perceptual loss whose features are read; default: what suits GENERATOR.")
    ] = "",
    perceptual: Annotated[
        str, Option(help='Its weights: "shipped", "imagenet" or a file; default: what suits GENERATOR.')
    ] = "",
    n: Annotated[int | None, Option(help="Samples to fit on; by default 3000, and 1000 above 256 px.", min=10)] = None,
    seed: Seed = 0,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Fit where inversions with a generator start: a linear map from a picture's features to w."""
    from .. import devices
    from . import start

    devices.keep_memory()
    set_threads(threads)
    how = dict(folder=folder, n=n, seed=seed, force=force, tell=typer.echo)
    show(start.run(generator, out, loss=loss or None, perceptual=perceptual or None, **how))


@app.command("starganv2")
def starganv2_command(
    work: Work = ROOT,
    total_images: Length = 0,
    ship: Ship = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train and ship the small StarGAN v2 of Table III; an interrupted run resumes."""
    from ..worlds import portraits
    from . import ship_stylists, starganv2

    place = accelerator_for(device, threads).device
    recipe = replace(starganv2.SHIPPED, total_images=total_images or starganv2.SHIPPED.total_images)
    if ship:
        ship_stylists.free(starganv2.NAME, force=force)
    sets, folder = [_people(work, domain) for domain in portraits.DOMAINS], work / starganv2.NAME
    starganv2.run(sets, folder, recipe=recipe, device=place, tell=typer.echo)
    if ship:
        show(ship_stylists.ship_starganv2(folder, sets, force=force))


@app.command("dualstylegan")
def dualstylegan_command(
    domain: Annotated[str, typer.Argument(help='"cartoon", "caricature" or "anime".', metavar="DOMAIN")],
    work: Work = ROOT,
    total_images: Length = 0,
    ship: Ship = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train and ship a small DualStyleGAN of Table III; an interrupted run resumes.

    Stage II is trained once for all domains; --total-images is the length of stage III.
    """
    from ..errors import UnknownName, nearest
    from . import dualstylegan, ship_stylists

    if domain not in ship_stylists.DRAWINGS:
        hint = nearest(domain, list(ship_stylists.DRAWINGS)) or "name one of these domains"
        raise UnknownName(f"domain {domain!r}", expected=f"one of {', '.join(ship_stylists.DRAWINGS)}", do=hint)
    place = accelerator_for(device, threads).device
    recipe = replace(dualstylegan.SHIPPED, total_images=total_images or dualstylegan.SHIPPED.total_images)
    if ship:
        ship_stylists.free(ship_stylists.name_of(domain), force=force)
    drawings, folder = _people(work, domain), work / ship_stylists.name_of(domain)
    second = replace(dualstylegan.SHIPPED, stage="structure", total_images=dualstylegan.STRUCTURE_IMAGES)
    begin = dualstylegan.run(
        _people(work, "photo"), work / "dualstylegan_structure", second, device=place, tell=typer.echo
    )
    dualstylegan.run(drawings, folder, recipe, begin=begin, device=place, tell=typer.echo)
    if ship:
        show(ship_stylists.ship_dualstylegan(domain, folder, drawings, force=force))


@app.command("gan3d")
def gan3d_command(
    work: Work = ROOT,
    people: Annotated[
        int, Option(help="Rendered heads, one for each person; 0 for the shipped network's number.", min=0)
    ] = 0,
    total_images: Length = 0,
    ship: Ship = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train and ship the small 3D-aware GAN of Fig. 15; an interrupted run resumes."""
    from . import gan3d, human_heads, ship_gan3d

    place, count = accelerator_for(device, threads).device, people or gan3d.PEOPLE
    recipe = replace(gan3d.SHIPPED, total_images=total_images or gan3d.SHIPPED.total_images)
    if ship:
        ship_gan3d.free(force=force)
    track(human_heads.render(work / f"heads_{count}", count, z_dim=gan3d.Z_DIM, seed=0), "heads", count)
    data, folder = human_heads.load(work / f"heads_{count}"), work / gan3d.NAME
    gan3d.run(data, folder, recipe=recipe, device=place, tell=typer.echo)
    if ship:
        show(ship_gan3d.ship(folder, data, force=force))


def _people(work: Path, domain: str) -> PictureSet:
    """The first pictures of the training set of a domain; those that are missing are rendered."""
    from .picture_sets import load_set, render_set
    from .shipped_gans import PEOPLE, SOME_PEOPLE, Z_DIM

    folder = work / f"portraits_{domain}128_{SOME_PEOPLE}"
    world = f"portraits/{domain}"
    rendering = render_set(folder, PEOPLE, world=world, resolution=128, z_dim=Z_DIM, seed=0, count=SOME_PEOPLE)
    track(rendering, domain, SOME_PEOPLE)
    return load_set(folder)
