"""`hrlab train ...`: render or pack a data set, train a GAN on it, ship it; one command for each shipped network.

The training commands run on one CPU or one GPU as they are, on many GPUs through `accelerate launch --multi_gpu -m
hrlib.cli train ...`, and on any machine through `torchrun --standalone --nproc-per-node 2 -m hrlib.cli train ...`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .recipe import MOST, Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .data import RenderedSet

app = typer.Typer(no_args_is_help=True, help="Train the shipped networks again, or others on your own pictures.")
ROOT = Path("build/training")
Option = typer.Option
Threads = Annotated[int, Option(help="CPU threads; 0 leaves the choice to PyTorch.", min=0, max=1024)]
Thread = Annotated[int, Option(help="CPU threads; the numbers depend on it in the last digits.", min=1, max=1024)]
Device = Annotated[str, Option(help='"cpu", "cuda", or "auto": a GPU where there is one.')]
Work = Annotated[Path, Option(help="Where rendered sets and training folders are; what is begun there goes on.")]
Force = Annotated[bool, Option("--force", help="Replace the network in data/weights, and what belongs to it.")]
SetForce = Annotated[bool, Option("--force", help="Replace another set, or whatever has a set's file names, in there.")]


@app.command("render")
def render_command(
    folder: Annotated[Path, Option(help="The set's folder: new, empty, or of this very set.")],
    world: Annotated[str, Option(help='"portraits/photo", ".../cartoon", ".../caricature", ".../anime", "scenes".')] = (
        "portraits/photo"
    ),
    n: Annotated[int, Option(help="How many people or scenes have latents.")] = 16_000,
    count: Annotated[int, Option(help="How many of them, from the first, are rendered; 0 for all.")] = 0,
    resolution: int = 128,
    z_dim: int = 64,
    seed: int = 0,
    threads: Threads = 0,
    force: SetForce = False,
) -> None:
    """Render a training set; goes on where an interrupted run stopped."""
    from .data import render_set

    _threads(threads)
    how = dict(seed=seed, count=count or None, resolution=resolution, z_dim=z_dim, force=force)
    _track(render_set(folder, n, world=world, **how), world, count or n)


@app.command("pack")
def pack_command(
    source: Annotated[Path, typer.Argument(help="A folder of pictures of any size, and its subfolders.")],
    folder: Annotated[Path, typer.Argument(help="The set's folder: new or empty.")],
    resolution: int = 128,
    force: SetForce = False,
) -> None:
    """Make a training set of a folder of pictures: centred squares, resampled."""
    from .data import pack_folder

    _track(pack_folder(source, folder, resolution, force=force), str(source), None)


@app.command("gan")
def gan_command(
    data: Annotated[Path, Option(help="A set made by `hrlab train render` or `hrlab train pack`.")],
    folder: Annotated[Path, Option(help="The run's own folder: checkpoint, log, samples, snapshots.")],
    network: Annotated[str, Option(help='"style_inr" or "stylegan2"; a source decides it.')] = Recipe.network,
    source: Annotated[str, Option(help="Fine-tune this generator (and its discriminator): a name or a file.")] = "",
    backbone_from: Annotated[str, Option(help="Begin with this pair's layers below the RGB head.")] = "",
    total_images: Annotated[int, Option(help="Images seen by the generator in all.")] = Recipe.total_images,
    warm_images: Annotated[int, Option(help="Of which by regression (rendered sets only).")] = Recipe.warm_images,
    anchor: Annotated[float, Option(help="Weight of the regression beside the GAN loss.")] = Recipe.anchor,
    batch: Annotated[int, Option(help="Of all processes together.")] = Recipe.batch,
    lr: float = Recipe.lr,
    lr_fall: Annotated[float, Option(help="Last share of the run over which rates fall to a tenth.")] = Recipe.lr_fall,
    train_mapping: Annotated[bool, Option(help="Train z -> w too, or keep the source's layout.")] = True,
    warm_mapping_gain: float = Recipe.warm_mapping_gain,
    r1_gamma: float = Recipe.r1_gamma,
    r1_every: Annotated[int, Option(help="Steps.")] = Recipe.r1_every,
    ema_images: Annotated[int, Option(help="Half-life of the moving average.")] = Recipe.ema_images,
    mixing_prob: float = Recipe.mixing_prob,
    fresh_prob: Annotated[
        float, Option(help="Share of z drawn from N(0, I) beside known latents.")
    ] = Recipe.fresh_prob,
    mirror: bool = Recipe.mirror,
    ada_target: Annotated[float, Option(help="Of E[sign D(real)]; 0 for no augmentation.")] = Recipe.ada_target,
    ada_images: Annotated[int, Option(help="Within which p may rise to 1.")] = Recipe.ada_images,
    noise_strength: Annotated[float, Option(help="Initial, without a source.")] = Recipe.noise_strength,
    noise_strength_gain: float = Recipe.noise_strength_gain,
    z_dim: Annotated[int, Option(help="Of a new network on pictures without latents.")] = Recipe.z_dim,
    w_dim: Annotated[int, Option(help="Of a new network.")] = Recipe.w_dim,
    mapping_layers: Annotated[int, Option(help="Of a new network.")] = Recipe.mapping_layers,
    channel_base: Annotated[int, Option(help="Of a new network: min(base / resolution, max).")] = 2048,
    channel_max: Annotated[int, Option(help="Of a new network.")] = 96,
    inr_hidden: Annotated[int, Option(help="Of a new Style-INR-GAN.")] = Recipe.inr_hidden,
    bf16: bool = Recipe.bf16,
    seed: int = Recipe.seed,
    checkpoint_every: Annotated[int, Option(help="Images; also the log and the sample sheet.")] = 4_000,
    snapshot_every: Annotated[int, Option(help="Images; generator and discriminator are kept. 0: never.")] = 40_000,
    frechet_every: Annotated[int, Option(help="Images. 0: never.")] = 40_000,
    frechet_n: Annotated[int, Option(help="Pictures a side.")] = 1_000,
    threads: Threads = 0,
    device: Device = "auto",
    force: Annotated[bool, Option("--force", help="Replace another training in the folder.")] = False,
) -> None:
    """Train StyleGAN2 or Style-INR-GAN as Sec. IV-A; goes on from the folder's checkpoint if there is one.

    It goes on with the same options and data alone; only --total-images may grow.

    The defaults, with a source, are the paper's fine-tuning on few pictures.
    """
    from ..errors import number
    from ..nets.stylegan2 import channel_plan
    from . import gan, run
    from .data import load_set

    accelerator = _accelerator(device, threads)
    pictures = load_set(data)
    if source or backbone_from:
        shape = gan.like(source or backbone_from) | {"source": source or None, "backbone_from": backbone_from or None}
        shape |= {"network": network} if backbone_from else {}
    else:
        shape = dict(network=network, resolution=pictures.resolution, w_dim=w_dim, mapping_layers=mapping_layers)
        plan = {"base": number("channel_base", channel_base, "whole [1, inf)")}
        plan |= {"most": number("channel_max", channel_max, "whole [1, inf)")}
        shape |= dict(channels=channel_plan(pictures.resolution, **plan))
        shape |= dict(z_dim=z_dim if pictures.z is None else pictures.z.shape[1])
    recipe = Recipe(
        **{"inr_hidden": inr_hidden} | shape,
        batch=batch,
        total_images=total_images,
        warm_images=warm_images,
        lr=lr,
        lr_fall=lr_fall,
        train_mapping=train_mapping,
        warm_mapping_gain=warm_mapping_gain,
        r1_gamma=r1_gamma,
        r1_every=r1_every,
        ema_images=ema_images,
        mixing_prob=mixing_prob,
        fresh_prob=fresh_prob,
        anchor=anchor,
        noise_strength=noise_strength,
        noise_strength_gain=noise_strength_gain,
        mirror=mirror,
        ada_target=ada_target,
        ada_images=ada_images,
        bf16=bf16,
        seed=seed,
    )
    every = run.Every(checkpoint_every, snapshot_every, frechet_every, frechet_n)
    how = dict(device=accelerator.device, accelerator=accelerator, force=force, tell=_tell)
    run.run(recipe, pictures, folder, every=every, **how)


@app.command("network")
def network_command(
    name: Annotated[str, typer.Argument(help="A shipped generator, e.g. cartoon_inr128: see training/family.py.")],
    work: Work = ROOT,
    total_images: Annotated[int, Option(help="Images in all; 0 for the length in family.py.")] = 0,
    warm_images: Annotated[int, Option(help="Of which by regression; -1 for the length in family.py.", min=-1)] = -1,
    frechet_every: Annotated[int, Option(help="Images. 0: never.")] = 20_000,
    ship: Annotated[bool, Option(help="Copy the pair into data/weights and measure it when it is trained.")] = True,
    threads: Threads = 0,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Render, train and ship one of the shipped generators; goes on where an interrupted run stopped."""
    from . import family, run
    from . import ship as shipping
    from .data import load_set, render_set

    member = family.member(name)
    recipe = replace(member.recipe, total_images=total_images or member.recipe.total_images)
    recipe = recipe if warm_images < 0 else replace(recipe, warm_images=warm_images)
    every = run.Every(frechet=frechet_every)
    if ship:
        shipping.free(name, force=force)
    accelerator = _accelerator(device, threads)
    pictures = work / member.set_name
    if accelerator.is_main_process:
        size = dict(resolution=recipe.resolution, z_dim=recipe.z_dim, seed=0)
        _track(
            render_set(pictures, member.n, world=member.world, count=member.count, **size), member.world, member.count
        )
    accelerator.wait_for_everyone()
    place = dict(device=accelerator.device, accelerator=accelerator)
    run.run(recipe, load_set(pictures), work / name, every=every, tell=_tell, **place)
    if ship and accelerator.is_main_process:
        ship_command(name, work, force=force)


@app.command("ship")
def ship_command(
    name: Annotated[str, typer.Argument(help="A shipped generator: see training/family.py.")] = "portraits_inr128",
    work: Work = ROOT,
    n: Annotated[
        int, Option(help="Pictures a side of the ladder. 0: not now, see benchmarks/shipped_world.py.", min=0)
    ] = 10_000,
    force: Force = False,
) -> None:
    """Copy a trained pair into data/weights, measure it, write the model cards."""
    from ..errors import number
    from . import ship

    n = n and number("n", n, f"whole [4, {MOST}]")
    ship.ship(work / name, name=name, force=force)
    if n:
        for what, table in ship.measures(name, n=n):
            typer.echo(f"{what}\n{table.to_string(index=False)}")


@app.command("style-inr")
def style_inr_command(
    source: Annotated[
        str, Option("--from", help="A StyleGAN2: catalogue name, our file, NVlabs .pkl, rosinality .pt.")
    ],
    out: Annotated[Path, Option(help="The new file, .safetensors; its card, .md, will be beside it.")],
    folder: Annotated[
        Path | None, Option(help="The run's own folder; by default build/training/NAME of the file.")
    ] = None,
    steps: int = 1000,
    hidden: Annotated[int, Option(help="Width of the head.")] = 64,
    n: Annotated[int, Option(help="Pictures on which the loss of quality is measured.")] = 256,
    data: Annotated[Path | None, Option(help="A set to measure Frechet distances from as well.")] = None,
    seed: int = 0,
    threads: Threads = 0,
    device: Device = "auto",
    force: Annotated[bool, Option("--force", help="Replace the file, its card, another run in the folder.")] = False,
) -> None:
    """Train an INR head on a StyleGAN2's own samples: any canvas for a generator that exists already."""
    from ..store import destination
    from . import head
    from .data import load_set

    out, recipe = destination(out, ".safetensors"), head.Recipe(steps=steps, hidden=hidden, seed=seed)
    place = str(_accelerator(device, threads).device)
    pictures = load_set(data) if data else None
    how = dict(device=place, n=n, data=pictures, force=force, tell=_tell)
    found = head.run(source, out, folder or ROOT / out.stem, recipe, **how)
    for what, value in found.items():
        typer.echo(f"{value:10.3f}  {what}")


@app.command("identity")
def identity_command(
    folder: Annotated[Path, Option(help="Of this training alone: views, checkpoint, log.")] = ROOT / "identity",
    out: Annotated[Path | None, Option(help="Default: data/weights/identity_thin.safetensors.")] = None,
    seed: int = 0,
    threads: Thread = 1,
    force: Annotated[bool, Option("--force", help="Replace the file and its card.")] = False,
) -> None:
    """Render, train and ship the identity network; goes on where an interrupted run stopped."""
    from . import identity

    for what, rates in identity.run(folder, out, seed=seed, threads=threads, force=force).items():
        typer.echo(f"{sum(rates) / len(rates):10.3f}  {what}")


@app.command("pose")
def pose_command(
    folder: Annotated[Path, Option(help="Cached features.")] = ROOT / "pose",
    out: Annotated[Path | None, Option(help="Default: data/weights/pose_thin.safetensors.")] = None,
    threads: Threads = 0,
    force: Annotated[bool, Option("--force", help="Replace the file and its card.")] = False,
) -> None:
    """Render, fit and ship the pose reader."""
    from . import pose

    _threads(threads)
    typer.echo(pose.run(folder, out, force=force).to_string(index=False))


@app.command("starganv2")
def starganv2_command(
    work: Work = ROOT,
    total_images: Annotated[int, Option(help="Content pictures in all; 0 for the shipped network's.")] = 0,
    ship: Annotated[bool, Option(help="Enter the network in data/weights when it is trained.")] = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train and ship the small StarGAN v2 of Table III; goes on where an interrupted run stopped."""
    from ..worlds import portraits
    from . import starganv2, stylists

    place = _accelerator(device, threads).device
    recipe = starganv2.Recipe()
    recipe = replace(recipe, total_images=total_images or recipe.total_images)
    if ship:
        stylists.free(starganv2.NAME, force=force)
    sets, folder = [_people(work, domain) for domain in portraits.DOMAINS], work / starganv2.NAME
    starganv2.run(sets, folder, recipe=recipe, device=place, tell=_tell)
    if ship:
        _show(stylists.ship_starganv2(folder, sets, force=force))


@app.command("dualstylegan")
def dualstylegan_command(
    domain: Annotated[str, typer.Argument(help='"cartoon", "caricature" or "anime".')],
    work: Work = ROOT,
    total_images: Annotated[int, Option(help="Pictures of stage III; 0 for the shipped network's.")] = 0,
    ship: Annotated[bool, Option(help="Enter the network in data/weights when it is trained.")] = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train (stage II once for all domains) and ship a small DualStyleGAN of Table III; resumable."""
    from ..errors import UnknownName, nearest
    from . import dualstylegan, stylists

    if domain not in stylists.DRAWINGS:
        hint = nearest(domain, list(stylists.DRAWINGS)) or "choose one of them"
        raise UnknownName(f"domain {domain!r}", expected=f"one of {', '.join(stylists.DRAWINGS)}", do=hint)
    place = _accelerator(device, threads).device
    recipe = dualstylegan.Recipe()
    recipe = replace(recipe, total_images=total_images or recipe.total_images)
    if ship:
        stylists.free(stylists.name_of(domain), force=force)
    drawings, folder = _people(work, domain), work / stylists.name_of(domain)
    second = dualstylegan.Recipe(stage="structure", total_images=dualstylegan.STRUCTURE_IMAGES)
    begin = dualstylegan.run(_people(work, "photo"), work / "dualstylegan_structure", second, device=place, tell=_tell)
    dualstylegan.run(drawings, folder, recipe, begin=begin, device=place, tell=_tell)
    if ship:
        _show(stylists.ship_dualstylegan(domain, folder, drawings, force=force))


@app.command("gan3d")
def gan3d_command(
    work: Work = ROOT,
    people: Annotated[int, Option(help="Rendered heads, one a person; 0 for the shipped network's.", min=0)] = 0,
    total_images: Annotated[int, Option(help="Pictures in all; 0 for the shipped network's.")] = 0,
    ship: Annotated[bool, Option(help="Enter the pair in data/weights when it is trained.")] = True,
    threads: Thread = 1,
    device: Device = "cpu",
    force: Force = False,
) -> None:
    """Render, train and ship the small 3D-aware GAN of Fig. 15; goes on where an interrupted run stopped."""
    from . import gan3d, heads, ship3d

    place, count = _accelerator(device, threads).device, people or gan3d.PEOPLE
    recipe = gan3d.Recipe()
    recipe = replace(recipe, total_images=total_images or recipe.total_images)
    if ship:
        ship3d.free(force=force)
    _track(heads.render(work / f"heads_{count}", count, z_dim=gan3d.Z_DIM, seed=0), "heads", count)
    data, folder = heads.load(work / f"heads_{count}"), work / gan3d.NAME
    gan3d.run(data, folder, recipe=recipe, device=place, tell=_tell)
    if ship:
        _show(ship3d.ship(folder, data, force=force))


def _people(work: Path, domain: str) -> RenderedSet:
    """The first pictures of the training set of a domain, rendered as far as they are not there yet."""
    from .data import load_set, render_set
    from .family import PEOPLE, SOME_PEOPLE, Z_DIM

    folder = work / f"portraits_{domain}128_{SOME_PEOPLE}"
    size = dict(resolution=128, z_dim=Z_DIM, seed=0, count=SOME_PEOPLE)
    _track(render_set(folder, PEOPLE, world=f"portraits/{domain}", **size), domain, SOME_PEOPLE)
    return load_set(folder)


def _show(found: dict[str, float]) -> None:
    for what, value in found.items():
        typer.echo(f"{value:10.3f}  {what}")


def _tell(text: str) -> None:
    typer.echo(text)


def _track(chunks: Iterable[int], what: str, total: int | None) -> None:
    """Exhaust a generator of numbers done, with a progress bar on a terminal."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(what, total=total)
        for done in chunks:
            progress.update(task, completed=done)


def _threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _accelerator(device: str, threads: int) -> Accelerator:
    """This process's place among those that `accelerate launch` or torchrun started: device, rank, exchange."""
    from accelerate import Accelerator

    from .. import devices

    on_cpu = devices.choose(device).type == "cpu"  # which GPU is accelerate's choice: one a process
    _threads(threads)
    return Accelerator(cpu=on_cpu, mixed_precision="no")
