"""`hrlab train ...`: make a set of pictures, train a GAN on it, ship it; one command for each shipped network.

The commands `gan` and `network` run on one CPU or GPU as they are, on several GPUs through `accelerate launch
--multi_gpu -m hrlib.cli train ...`, and in several processes on any machine through `torchrun --standalone
--nproc-per-node 2 -m hrlib.cli train ...`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .recipe import MOST, GanRecipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .picture_sets import PictureSet

app = typer.Typer(no_args_is_help=True, help="Train the shipped networks again, or new ones on your own pictures.")
ROOT = Path("build/training")
Option = typer.Option
Threads = Annotated[int, Option(help="CPU threads; 0 lets PyTorch choose.", min=0, max=1024)]
Thread = Annotated[int, Option(help="CPU threads; they change the last digits of the results.", min=1, max=1024)]
Seed = Annotated[int, Option(help="Seed of the initial weights and of all draws.")]
Device = Annotated[str, Option(help='"cpu", "cuda", or "auto": a GPU where there is one.')]
Work = Annotated[Path, Option(help="Folder for rendered sets and training folders; unfinished ones in it are resumed.")]
Length = Annotated[int, Option(help="Length of the training, in pictures; 0 for the shipped network's.")]
Ship = Annotated[bool, Option(help="Copy the trained network into data/weights and measure it.")]
Force = Annotated[bool, Option("--force", help="Replace the network in data/weights and the files that belong to it.")]
SetForce = Annotated[
    bool, Option("--force", help="Replace another set, or other files with the same names, in the folder.")
]


@app.command("render")
def render_command(
    folder: Annotated[Path, Option(help="Folder of the set: new, empty, or holding this very set.")],
    world: Annotated[str, Option(help='"portraits/photo", ".../cartoon", ".../caricature", ".../anime", "scenes".')] = (
        "portraits/photo"
    ),
    n: Annotated[int, Option(help="Number of people or scenes that get latents.")] = 16_000,
    count: Annotated[int, Option(help="Render only the first so many of them; 0 for all.")] = 0,
    resolution: Annotated[int, Option(help="Side of the pictures, in pixels.")] = 128,
    z_dim: Annotated[int, Option(help="Length of a latent.")] = 64,
    seed: Annotated[int, Option(help="Seed of the people or scenes.")] = 0,
    threads: Threads = 0,
    force: SetForce = False,
) -> None:
    """Render a training set, or resume an interrupted rendering."""
    from .picture_sets import render_set

    _threads(threads)
    rendering = render_set(
        folder, n, world=world, resolution=resolution, z_dim=z_dim, seed=seed, count=count or None, force=force
    )
    _track(rendering, world, count or n)


@app.command("pack")
def pack_command(
    source: Annotated[Path, typer.Argument(help="A folder with pictures of any size, searched with its subfolders.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the set: new or empty.")],
    resolution: Annotated[int, Option(help="Side of the pictures, in pixels.")] = 128,
    force: SetForce = False,
) -> None:
    """Make a training set from a folder of pictures: centred squares, resampled."""
    from .picture_sets import pack_folder

    _track(pack_folder(source, folder, resolution, force=force), str(source), None)


@app.command("gan")
def gan_command(
    data: Annotated[Path, Option(help="A set made by `hrlab train render` or `hrlab train pack`.")],
    folder: Annotated[Path, Option(help="Folder of this run alone: checkpoint, log, samples, snapshots.")],
    network: Annotated[
        str, Option(help='"style_inr" or "stylegan2"; with --source, the source\'s.')
    ] = GanRecipe.network,
    source: Annotated[str, Option(help="Fine-tune this generator and its discriminator: a name or a file.")] = "",
    backbone_from: Annotated[str, Option(help="Take all but the RGB layers from this pair.")] = "",
    total_images: Annotated[
        int, Option(help="Length of the training, in images seen by the generator.")
    ] = GanRecipe.total_images,
    warm_images: Annotated[
        int, Option(help="Of these, in the warm start (rendered sets only).")
    ] = GanRecipe.warm_images,
    anchor: Annotated[
        float, Option(help="Weight of the regression that is kept beside the GAN loss.")
    ] = GanRecipe.anchor,
    batch: Annotated[int, Option(help="Batch size over all processes.")] = GanRecipe.batch,
    lr: Annotated[float, Option(help="Learning rate.")] = GanRecipe.lr,
    lr_fall: Annotated[float, Option(help="Share of the run in which the rates fall to a tenth.")] = GanRecipe.lr_fall,
    train_mapping: Annotated[bool, Option(help="Train the mapping z -> w too, or keep the source's layout.")] = True,
    warm_mapping_gain: Annotated[
        float, Option(help="Factor on the mapping's rate in the warm start.")
    ] = GanRecipe.warm_mapping_gain,
    r1_gamma: Annotated[float, Option(help="Weight of R1.")] = GanRecipe.r1_gamma,
    r1_every: Annotated[int, Option(help="Steps between two R1 penalties.")] = GanRecipe.r1_every,
    ema_images: Annotated[int, Option(help="Half-life of the moving average, in images.")] = GanRecipe.ema_images,
    mixing_prob: Annotated[float, Option(help="Probability of style mixing.")] = GanRecipe.mixing_prob,
    fresh_prob: Annotated[
        float, Option(help="Share of steps with z ~ N(0, I) instead of known latents.")
    ] = GanRecipe.fresh_prob,
    mirror: Annotated[bool, Option(help="Mirror half of the real pictures.")] = GanRecipe.mirror,
    ada_target: Annotated[
        float, Option(help="Target of the mean sign of D(real); 0 for no augmentation.")
    ] = GanRecipe.ada_target,
    ada_images: Annotated[
        int, Option(help="Images in which augmentation may rise from 0 to 1.")
    ] = GanRecipe.ada_images,
    noise_strength: Annotated[
        float, Option(help="Initial noise strength of a new network.")
    ] = GanRecipe.noise_strength,
    noise_strength_gain: Annotated[
        float, Option(help="Factor on the learning rate of the noise strengths.")
    ] = GanRecipe.noise_strength_gain,
    z_dim: Annotated[int, Option(help="Length of z of a new network, for pictures without latents.")] = GanRecipe.z_dim,
    w_dim: Annotated[int, Option(help="Length of w of a new network.")] = GanRecipe.w_dim,
    mapping_layers: Annotated[
        int, Option(help="Layers of the mapping network of a new network.")
    ] = GanRecipe.mapping_layers,
    channel_base: Annotated[int, Option(help="Channels of a new network's block: min(base / resolution, max).")] = 2048,
    channel_max: Annotated[int, Option(help="Most channels of a new network's block.")] = 96,
    inr_hidden: Annotated[int, Option(help="Width of the INR head of a new Style-INR-GAN.")] = GanRecipe.inr_hidden,
    bf16: Annotated[bool, Option(help="Compute in bfloat16 where autocast allows it.")] = GanRecipe.bf16,
    seed: Seed = GanRecipe.seed,
    checkpoint_every: Annotated[
        int, Option(help="Images between two checkpoints, log rows and sample sheets.")
    ] = 4_000,
    snapshot_every: Annotated[int, Option(help="Images between two snapshots of the pair; 0 for none.")] = 40_000,
    frechet_every: Annotated[int, Option(help="Images between two Frechet distances; 0 for none.")] = 40_000,
    frechet_n: Annotated[int, Option(help="Pictures on each side of a Frechet distance.")] = 1_000,
    threads: Threads = 0,
    device: Device = "auto",
    force: Annotated[bool, Option("--force", help="Replace another training in the folder.")] = False,
) -> None:
    """Train StyleGAN2 or Style-INR-GAN as in Sec. IV-A, or resume from the folder's checkpoint.

    Resuming needs the same options and data; only --total-images may grow. With --source, the defaults are the paper's
    fine-tuning on few pictures.
    """
    from ..errors import number
    from ..nets.stylegan2 import channel_plan
    from . import gan
    from .picture_sets import load_set

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
    recipe = GanRecipe(
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
    gan.run(
        recipe,
        pictures,
        folder,
        checkpoint_every=checkpoint_every,
        snapshot_every=snapshot_every,
        frechet_every=frechet_every,
        frechet_n=frechet_n,
        device=accelerator.device,
        accelerator=accelerator,
        force=force,
        tell=_tell,
    )


@app.command("network")
def network_command(
    name: Annotated[
        str, typer.Argument(help="A shipped generator, such as cartoon_inr128; training/shipped_gans.py lists them.")
    ],
    work: Work = ROOT,
    total_images: Length = 0,
    warm_images: Annotated[
        int, Option(help="Of these, images of the warm start; -1 for the shipped network's.", min=-1)
    ] = -1,
    frechet_every: Annotated[int, Option(help="Images between two Frechet distances; 0 for none.")] = 20_000,
    ship: Ship = True,
    threads: Threads = 0,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Render, train and ship one of the shipped generators; an interrupted run resumes."""
    from . import gan, ship_gan, shipped_gans
    from .picture_sets import load_set, render_set

    network = shipped_gans.named(name)
    recipe = replace(network.recipe, total_images=total_images or network.recipe.total_images)
    recipe = recipe if warm_images < 0 else replace(recipe, warm_images=warm_images)
    if ship:
        ship_gan.free(name, force=force)
    accelerator = _accelerator(device, threads)
    pictures = work / network.set_name
    if accelerator.is_main_process:
        rendering = render_set(
            pictures,
            network.n,
            world=network.world,
            resolution=recipe.resolution,
            z_dim=recipe.z_dim,
            seed=0,
            count=network.count,
        )
        _track(rendering, network.world, network.count)
    accelerator.wait_for_everyone()
    gan.run(
        recipe,
        load_set(pictures),
        work / name,
        frechet_every=frechet_every,
        device=accelerator.device,
        accelerator=accelerator,
        tell=_tell,
    )
    if ship and accelerator.is_main_process:
        ship_command(name, work, force=force)


@app.command("ship")
def ship_command(
    name: Annotated[
        str, typer.Argument(help="A shipped generator; training/shipped_gans.py lists them.")
    ] = "portraits_inr128",
    work: Work = ROOT,
    n: Annotated[
        int, Option(help="Pictures on each side of the ladder; 0 leaves it to benchmarks/shipped_world.py.", min=0)
    ] = 10_000,
    force: Force = False,
) -> None:
    """Copy a trained pair into data/weights, measure it and write the model cards."""
    from ..errors import number
    from . import ship_gan

    n = n and number("n", n, f"whole [4, {MOST}]")
    ship_gan.ship(work / name, name=name, force=force)
    if n:
        for what, table in ship_gan.measures(name, n=n):
            typer.echo(f"{what}\n{table.to_string(index=False)}")


@app.command("style-inr")
def style_inr_command(
    source: Annotated[
        str,
        Option(
            "--from",
            help="A StyleGAN2: a name of the catalogue, a .safetensors of ours, an NVlabs .pkl or a rosinality .pt.",
        ),
    ],
    out: Annotated[Path, Option(help="The file to write, .safetensors; its card, .md, is written beside it.")],
    folder: Annotated[
        Path | None, Option(help="Folder of this run alone; by default build/training/NAME of the file.")
    ] = None,
    steps: Annotated[int, Option(help="Steps of the training.")] = 1000,
    hidden: Annotated[int, Option(help="Width of the head's layers.")] = 64,
    n: Annotated[int, Option(help="Pictures on which the head is measured.")] = 256,
    data: Annotated[Path | None, Option(help="Also measure Frechet distances to this set.")] = None,
    seed: Seed = 0,
    threads: Threads = 0,
    device: Device = "auto",
    force: Annotated[
        bool, Option("--force", help="Replace the file and its card, and another run in the folder.")
    ] = False,
) -> None:
    """Train an INR head on a StyleGAN2's own samples, so that it draws any canvas."""
    from ..store import destination
    from . import inr_head
    from .picture_sets import load_set

    out = destination(out, ".safetensors")
    found = inr_head.run(
        source,
        out,
        folder or ROOT / out.stem,
        inr_head.InrHeadRecipe(steps=steps, hidden=hidden, seed=seed),
        device=_accelerator(device, threads).device,
        n=n,
        data=load_set(data) if data else None,
        force=force,
        tell=_tell,
    )
    _show(found)


@app.command("perceptual")
def perceptual_command(
    which: Annotated[str, typer.Argument(help='"vgg16", "resnet50" or "deit".')],
    folder: Annotated[
        Path | None, Option(help="Folder of this training alone; by default build/training/WHICH_thin.")
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

    _show(perceptual.run(which, out, folder=folder, steps=steps, seed=seed, threads=threads, force=force, tell=_tell))


@app.command("identity")
def identity_command(
    folder: Annotated[Path, Option(help="Folder of this training alone: views, checkpoint, log.")] = ROOT / "identity",
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
    rates = identity.run(folder, out, recipe=recipe, threads=threads, force=force, tell=_tell)
    _show({what: sum(found) / len(found) for what, found in rates.items()})


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

    _threads(threads)
    typer.echo(pose.run(folder, out, force=force).to_string(index=False))


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

    place = _accelerator(device, threads).device
    recipe = replace(starganv2.SHIPPED, total_images=total_images or starganv2.SHIPPED.total_images)
    if ship:
        ship_stylists.free(starganv2.NAME, force=force)
    sets, folder = [_people(work, domain) for domain in portraits.DOMAINS], work / starganv2.NAME
    starganv2.run(sets, folder, recipe=recipe, device=place, tell=_tell)
    if ship:
        _show(ship_stylists.ship_starganv2(folder, sets, force=force))


@app.command("dualstylegan")
def dualstylegan_command(
    domain: Annotated[str, typer.Argument(help='"cartoon", "caricature" or "anime".')],
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
    place = _accelerator(device, threads).device
    recipe = replace(dualstylegan.SHIPPED, total_images=total_images or dualstylegan.SHIPPED.total_images)
    if ship:
        ship_stylists.free(ship_stylists.name_of(domain), force=force)
    drawings, folder = _people(work, domain), work / ship_stylists.name_of(domain)
    second = replace(dualstylegan.SHIPPED, stage="structure", total_images=dualstylegan.STRUCTURE_IMAGES)
    begin = dualstylegan.run(_people(work, "photo"), work / "dualstylegan_structure", second, device=place, tell=_tell)
    dualstylegan.run(drawings, folder, recipe, begin=begin, device=place, tell=_tell)
    if ship:
        _show(ship_stylists.ship_dualstylegan(domain, folder, drawings, force=force))


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

    place, count = _accelerator(device, threads).device, people or gan3d.PEOPLE
    recipe = replace(gan3d.SHIPPED, total_images=total_images or gan3d.SHIPPED.total_images)
    if ship:
        ship_gan3d.free(force=force)
    _track(human_heads.render(work / f"heads_{count}", count, z_dim=gan3d.Z_DIM, seed=0), "heads", count)
    data, folder = human_heads.load(work / f"heads_{count}"), work / gan3d.NAME
    gan3d.run(data, folder, recipe=recipe, device=place, tell=_tell)
    if ship:
        _show(ship_gan3d.ship(folder, data, force=force))


def _people(work: Path, domain: str) -> PictureSet:
    """The first pictures of the training set of a domain; those that are missing are rendered."""
    from .picture_sets import load_set, render_set
    from .shipped_gans import PEOPLE, SOME_PEOPLE, Z_DIM

    folder = work / f"portraits_{domain}128_{SOME_PEOPLE}"
    world = f"portraits/{domain}"
    rendering = render_set(folder, PEOPLE, world=world, resolution=128, z_dim=Z_DIM, seed=0, count=SOME_PEOPLE)
    _track(rendering, domain, SOME_PEOPLE)
    return load_set(folder)


def _show(found: dict[str, float]) -> None:
    for what, value in found.items():
        typer.echo(f"{value:10.3f}  {what}")


def _tell(text: str) -> None:
    typer.echo(text)


def _track(chunks: Iterable[int], what: str, total: int | None) -> None:
    """Run a generator of numbers done to its end, with a progress bar on a terminal."""
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
