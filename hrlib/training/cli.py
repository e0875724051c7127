"""`hrlab train ...`: make a set of pictures, train a GAN on it, ship it; one command for each shipped network.

The commands `gan` and `network` run on one CPU or GPU as they are, on several GPUs through `accelerate launch
--multi_gpu -m hrlib.cli train ...`, and in several processes on any machine through `torchrun --standalone
--nproc-per-node 2 -m hrlib.cli train ...`. The commands of the other networks are in cli_networks.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import cli_networks
from .cli_options import (
    ROOT,
    Device,
    Force,
    Length,
    Option,
    Seed,
    SetForce,
    Ship,
    Threads,
    Work,
    accelerator_for,
    set_threads,
    track,
)
from .recipe import MOST, GanRecipe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train the shipped networks again, or new ones on your own pictures.",
)


@app.command("render")
def render_command(
    folder: Annotated[Path, Option(help="Folder of the set: new, empty, or holding this same set.")],
    world: Annotated[str, Option(help='"portraits/photo", ".../cartoon", ".../caricature", ".../anime", "scenes".')] = (
        "portraits/photo"
    ),
    n: Annotated[int, Option(help="Number of people or scenes that get latents.")] = 16_000,
    count: Annotated[int, Option(help="Render only the first COUNT; 0 for all.")] = 0,
    resolution: Annotated[int, Option(help="Side of the pictures, in pixels.")] = 128,
    z_dim: Annotated[int, Option(help="Length of a latent.")] = 64,
    seed: Annotated[int, Option(help="Seed of the people or scenes.")] = 0,
    threads: Threads = 0,
    force: SetForce = False,
) -> None:
    """Render a training set, or resume an interrupted rendering."""
    from .picture_sets import render_set

    set_threads(threads)
    rendering = render_set(
        folder, n, world=world, resolution=resolution, z_dim=z_dim, seed=seed, count=count or None, force=force
    )
    track(rendering, world, count or n)


@app.command("pack")
def pack_command(
    source: Annotated[
        Path, typer.Argument(help="A folder with pictures of any size, searched with its subfolders.", metavar="SOURCE")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder of the set: new or empty.", metavar="FOLDER")],
    resolution: Annotated[int, Option(help="Side of the pictures, in pixels.")] = 128,
    force: SetForce = False,
) -> None:
    """Make a training set from a folder of pictures: centred squares, resampled."""
    from .picture_sets import pack_folder

    track(pack_folder(source, folder, resolution, force=force), str(source), None)


@app.command("gan")
def gan_command(
    data: Annotated[Path, Option(help="A set made by `hrlab train render` or `hrlab train pack`.")],
    folder: Annotated[Path, Option(help="A folder for this run only: checkpoint, log, samples, snapshots.")],
    network: Annotated[
        str, Option(help='"style_inr" or "stylegan2"; with --source, the source\'s.')
    ] = GanRecipe.network,
    source: Annotated[str, Option(help="Fine-tune this generator and its discriminator: a name or a file.")] = "",
    backbone_from: Annotated[
        str, Option(help="Take all but the RGB layers from this generator and discriminator.")
    ] = "",
    total_images: Annotated[
        int, Option(help="Length of the training, in images seen by the generator.")
    ] = GanRecipe.total_images,
    warm_images: Annotated[
        int, Option(help="How many of --total-images belong to the warm start (rendered sets only).")
    ] = GanRecipe.warm_images,
    anchor: Annotated[float, Option(help="Weight of a regression added to the GAN loss.")] = GanRecipe.anchor,
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
    snapshot_every: Annotated[int, Option(help="Images between two snapshots of both networks; 0 for none.")] = 40_000,
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

    accelerator = accelerator_for(device, threads)
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
        tell=typer.echo,
    )


@app.command("network")
def network_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped generator, such as cartoon_inr128; training/shipped_gans.py lists them.", metavar="NAME"
        ),
    ],
    work: Work = ROOT,
    total_images: Length = 0,
    warm_images: Annotated[
        int,
        Option(
            help="How many of --total-images belong to the warm start; -1 for the shipped network's number.", min=-1
        ),
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
    accelerator = accelerator_for(device, threads)
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
        track(rendering, network.world, network.count)
    accelerator.wait_for_everyone()
    gan.run(
        recipe,
        load_set(pictures),
        work / name,
        frechet_every=frechet_every,
        device=accelerator.device,
        accelerator=accelerator,
        tell=typer.echo,
    )
    if ship and accelerator.is_main_process:
        ship_command(name, work, force=force)


@app.command("ship")
def ship_command(
    name: Annotated[
        str, typer.Argument(help="A shipped generator; training/shipped_gans.py lists them.", metavar="NAME")
    ] = "portraits_inr128",
    work: Work = ROOT,
    n: Annotated[int, Option(help="Pictures on each side of the Frechet distances; 0 skips them.", min=0)] = 10_000,
    force: Force = False,
) -> None:
    """Copy a trained generator and its discriminator into data/weights, measure them and write their cards."""
    from ..errors import number
    from . import ship_gan

    n = n and number("n", n, f"whole [4, {MOST}]")
    ship_gan.ship(work / name, name=name, force=force)
    if n:
        for what, table in ship_gan.measures(name, n=n):
            typer.echo(f"{what}\n{table.to_string(index=False)}")


app.add_typer(cli_networks.app)
