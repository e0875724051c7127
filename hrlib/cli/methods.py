"""The commands for your own files: invert, gallery, id-retrieval, fid, align, convert, fetch, train."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ShapeError, StoreError, number

if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer()
ANY_SIZE, OWN_SIZE = "one picture of any size", "pictures at the generator's own size"  # the two ways of `invert`
galleries = typer.Typer(no_args_is_help=True, help="Style galleries: pictures of a domain as codes of its generator.")
app.add_typer(galleries, name="gallery")


@app.command()
def invert(
    pictures: Annotated[
        list[str],
        typer.Argument(
            help='A folder or a picture file, or names such as "scene:17", "photo:coffee", "imagined:3..9".',
            metavar="PICTURE",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Output folder: new, empty, or that of an interrupted run, which continues.")
    ],
    generator: Annotated[
        str,
        typer.Option(
            help="A catalogue name or a weight file. A Style-INR-GAN inverts one picture at its own size; faces at the "
            "generator's size need ffhq_mobile1024 (`make faces`), for instance."
        ),
    ] = "scenes_inr128",
    loss: Annotated[str, typer.Option(help='Such as "vgg_conv"; by default what suits the generator.')] = "",
    perceptual: Annotated[
        str,
        typer.Option(help='Weights of the loss: "shipped", "imagenet" or a file; default: what suits the generator.'),
    ] = "",
    num_steps: Annotated[
        int | None, typer.Option(help="Number of Adam steps; default: 50 for one picture of any size, else 200.", min=1)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of Adam; default: 1 for one picture of any size, else 0.6 or what suits the generator."
        ),
    ] = None,
    mse: Annotated[
        float | None,
        typer.Option(
            help="Weight of the squared pixel error: of its sum for one picture of any size (default: 0.001), else of "
            "its mean (0)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the exploration noise.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Use any folder and start afresh, replacing files the run would write.")
    ] = False,
    size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT in pixels; default: the size of the file.", rich_help_panel=ANY_SIZE)
    ] = "",
    memory: Annotated[
        str,
        typer.Option(
            help='Memory limit of the whole process, e.g. "4GB"; default: most of the free memory.',
            rich_help_panel=ANY_SIZE,
        ),
    ] = "",
    every: Annotated[
        int, typer.Option(help="Write a checkpoint and a preview every N steps.", min=1, rich_help_panel=ANY_SIZE)
    ] = 10,
    suffix: Annotated[
        str,
        typer.Option(
            "--format", help="Format of the reconstruction: png, jpg or tif (tiled).", rich_help_panel=ANY_SIZE
        ),
    ] = "png",
    dry_run: Annotated[
        bool, typer.Option("--plan", help="Print the memory plan and exit.", rich_help_panel=ANY_SIZE)
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of worker processes, 0 for this one alone; default: one a CPU for eight pictures or more of a "
            "generator of up to 256 pixels, else 0.",
            min=0,
            rich_help_panel=OWN_SIZE,
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help='Codes to begin with: "mean", or a start by catalogue name or file (`hrlab train start`); default: '
            "GENERATOR_start if there is one.",
            rich_help_panel=OWN_SIZE,
        ),
    ] = "",
    codes_only: Annotated[
        bool, typer.Option("--codes", help="Optimise codes alone, not noise maps.", rich_help_panel=OWN_SIZE)
    ] = False,
) -> None:
    """Invert one picture of any size within a memory limit (Sec. IV-F), or pictures at the generator's own size.

    The first with a Style-INR-GAN and a single picture, the second with several pictures, a folder, or another
    generator. Either way, an interrupted run continues.
    """
    from .. import devices, image
    from ..experiments import own_size, panoramas
    from ..worlds.pictures import listed

    devices.keep_memory()
    names = listed([_name(picture) for picture in pictures])
    if len(names) == 1 and not Path(pictures[0]).is_dir() and own_size.any_size(generator):
        _refuse({"--loss": loss, "--start": start, "--codes": codes_only, "--workers": workers is not None}, OWN_SIZE)
        given = dict(perceptual=perceptual or None, num_steps=num_steps, lr=lr, mse=mse)
        settings = panoramas.Settings(
            generator=generator, seed=seed, **{name: value for name, value in given.items() if value is not None}
        )
        how = dict(title=pictures[0], memory=memory or None, every=every, suffix=f".{suffix.lstrip('.')}", force=force)
        _any_size(names[0], image.sides(_size(size)) if size else None, out, settings, how, dry_run=dry_run)
        return
    _refuse({"--size": size, "--memory": memory, "--plan": dry_run}, ANY_SIZE)
    runs = own_size.grid(
        names,
        generator=generator,
        loss=loss or None,
        perceptual=perceptual or None,
        start=start or None,
        num_steps=num_steps,
        lr=lr,
        lam_mse=mse,
        noise=False if codes_only else None,
        seed=seed,
    )
    table = own_size.invert_into(runs, out, workers=workers, force=force)
    failed = table[table["error"] != ""]
    print(f"{len(table) - len(failed)} of {len(table)} pictures, mean PSNR {table['psnr'].mean():.1f} dB; see {out}")
    if len(failed):
        print("\n".join(f"{row.image}: {row.error}" for row in failed.itertuples()), file=sys.stderr)
        raise typer.Exit(1)


def _any_size(
    name: str, size: tuple[int, int] | None, out: Path, settings: Any, how: dict[str, Any], *, dry_run: bool
) -> None:
    """One picture by a Style-INR-GAN, or the plan for it alone."""
    from ..experiments import panoramas
    from ..lab.place import root
    from ..worlds.pictures import picture

    if dry_run:  # the plan depends on the size alone
        print(panoramas.plan(settings, size or tuple(picture(name).shape[2:]), memory=how["memory"]))
        return
    source = root() / name.removeprefix("file:") if name.startswith("file:") else None
    facts = panoramas.reconstruct_into(picture(name, size), out, settings, source=source, **how)
    print(", ".join(f"{name} {value:.3f}" for name, value in facts["whole"].items()))
    print(f"{facts['seconds_per_step']:.1f} s a step, peak {facts['peak'] / 1e9:.2f} GB; see {out / 'zoom/index.html'}")


def _name(picture: str) -> str:
    """A name for `worlds.pictures.listed`: pictures and folders of the user's by their absolute paths."""
    if ":" in picture and not Path(picture).exists():
        return picture
    return f"{'folder' if Path(picture).is_dir() else 'file'}:{Path(picture).resolve()}"


def _refuse(options: dict[str, Any], kind: str) -> None:
    """`typer.BadParameter` for options that are set and belong to the other way of `invert`."""
    if odd := [name for name, value in options.items() if value]:
        raise typer.BadParameter(f"for {kind} only", param_hint=", ".join(odd))


def _size(text: str) -> tuple[int, int]:
    """(H, W) of "WIDTHxHEIGHT"."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,8})x0*([1-9][0-9]{0,8})", text.lower())
    if not found:
        raise typer.BadParameter(f"got {text!r}, expected WIDTHxHEIGHT such as 6143x1677", param_hint="--size")
    return int(found[2]), int(found[1])


@galleries.command("build")
def build_gallery(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures in the generator's domain.", metavar="FOLDER")],
    generator: Annotated[str, typer.Option(help="The generator of that domain: a catalogue name or a weight file.")],
    out: Annotated[
        Path | None, typer.Option(help="Output file; default: FOLDER/GENERATOR.gallery.safetensors.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Crop, resize and flatten pictures to the generator's format.")
    ] = False,
    num_steps: Annotated[int, typer.Option(help="Number of Adam steps per picture.", min=1)] = 150,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.1,
    lam_mse: Annotated[float, typer.Option(help="Weight of the pixel error, lambda_mse in Eq. (5).")] = 3.0,
    perceptual: Annotated[
        str, typer.Option(help='VGG16 weights of the loss: "shipped", "imagenet" or a file.')
    ] = "shipped",
    workers: Annotated[int, typer.Option(help="Number of worker processes; 0 uses this one.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing gallery.")] = False,
) -> None:
    """Invert every picture in a folder and store the codes; an interrupted build continues where it stopped."""
    from ..experiments.galleries import build
    from ..worlds.pictures import listed

    name = Path(generator).stem if Path(generator).is_file() else Path(generator).name  # a name may have dots
    path = out or folder / f"{name}.gallery.safetensors"
    images = listed([f"folder:{folder.resolve()}"])
    how = dict(num_steps=num_steps, lr=lr, lam_mse=lam_mse, perceptual=perceptual, fit=fit, workers=workers)
    built = build(images, generator=generator, path=path, label=folder.name, force=force, **how)
    failed = built.table[built.table["error"] != ""]
    done = f"{len(built.gallery)} of {len(images)} pictures"
    print(f"{built.path}: {done}, mean PSNR {built.table['psnr'].mean():.1f} dB")
    if len(failed):
        print("\n".join(f"{Path(r.image).name}: {r.error}" for r in failed.itertuples()), file=sys.stderr)
        raise typer.Exit(1)


@app.command("id-retrieval")
def id_retrieval(
    content: Annotated[
        Path, typer.Argument(help="Folder of content pictures named ID.png (or another format).", metavar="CONTENT")
    ],
    stylised: Annotated[
        Path, typer.Argument(help="Folder with one subfolder of stylised pictures per ID.", metavar="STYLISED")
    ],
    network: Annotated[
        str,
        typer.Option(
            help='Identity network: "ir_se50" (the paper\'s), "dlib" (finds the faces itself; `make faces`), '
            '"identity_thin" (for the shipped portraits only), a weight file, or module:function.'
        ),
    ] = "ir_se50",
    face: Annotated[
        str, typer.Option(help='"whole" pictures, as in the paper, or the face "crop" of aligned portraits.')
    ] = "whole",
    bgr: Annotated[bool, typer.Option("--bgr", help="Feed IR-SE50 BGR, the channel order it was trained on.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Squared distance above which a picture matches nobody; default: 1.5, and 0.36 for dlib."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 32,
    device: Annotated[str, typer.Option(help='"cpu", "cuda", or "auto": a GPU if there is one.')] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Write the report (tables and pictures) to this new or empty folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use any folder, replacing files the report would write.")
    ] = False,
) -> None:
    """Measure how many stylised pictures are still recognised as their content (Sec. III-D).

    Exits with 1 if a picture could not be evaluated.
    """
    import contextlib

    from .. import devices, retrieval, store, weights
    from ..lab.progress_bar import progress

    where = devices.choose(device)
    if threshold is not None:
        number("threshold", threshold, "[0, inf)")
    retrieval.check_face(face)
    retrieval.scan(content, stylised)  # report a missing folder before claiming OUT
    if ":" in network and not Path(network).exists():
        net, where = retrieval.users_own(network), "cpu"
    else:
        net = weights.load_identity(network, where, bgr=bgr)
    threshold = retrieval.threshold_of(net) if threshold is None else threshold
    identity = dict(network=network, face=face, bgr=bgr, threshold=threshold)
    identity |= dict(content=str(content.resolve()), stylised=str(stylised.resolve()))
    with contextlib.ExitStack() as stack:
        if out:
            from ..lab import retrieval_report  # imports matplotlib, which the numbers alone do not need

            retrieval_report.apart(out, content, stylised)
            stack.enter_context(store.claimed(out, "report", identity, files=retrieval_report.FILES, force=force))
        how = dict(face=face, batch=batch, threshold=threshold, device=where)
        steps = retrieval.evaluate(content, stylised, net, **how)
        for report in progress(steps, label="pictures", unit="part", status=lambda r: f"{r.done} of {r.total}"):
            pass
        print(f"{report.text()}\nnetwork: {network}")
        if out:
            written = retrieval_report.write(report, content, out, force=True)  # the folder is ours now
            print("\n".join(str(path) for path in written))
    if len(report.problems):
        print(f"\n{len(report.problems)} problems:", file=sys.stderr)
        print("\n".join(f"{row.where}: {row.what}" for row in report.problems.itertuples()), file=sys.stderr)
    if (report.table["problem"] != "").any():
        raise typer.Exit(1)


@app.command()
def fid(
    stylised: Annotated[
        Path, typer.Argument(help="Folder of pictures, searched with its subfolders.", metavar="STYLISED")
    ],
    reference: Annotated[
        Path, typer.Argument(help="Folder of reference pictures, searched with its subfolders.", metavar="REFERENCE")
    ],
    network: Annotated[
        str, typer.Option(help='Feature network: "inception" (the paper\'s) or "vgg16_thin".')
    ] = "inception",
    size: Annotated[
        int, typer.Option(help="Resize pictures to this edge length first; 0 keeps their size.", min=0)
    ] = 0,
    batch: Annotated[int, typer.Option(help="Batch size.", min=1)] = 32,
) -> None:
    """Compute the Frechet distance between two folders of pictures, each of a single size."""
    import torch

    from .. import fid as distances
    from .. import image
    from ..lab.progress_bar import progress

    distances.check_network(network)
    vectors = []
    for folder in (stylised, reference):
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in image.SUFFIXES)
        if len(files) < 2:
            raise StoreError(f"{len(files)} pictures in {folder}", expected="two or more", do="check the path")
        parts = [files[i : i + batch] for i in range(0, len(files), batch)]
        read = lambda part: _of_one_size({p: image.read(p, size or None) for p in part})
        looked = [distances.features(read(part), network) for part in progress(parts, label=folder.name, unit="part")]
        vectors.append(torch.cat(looked))
    print(f"{distances.frechet_distance(*vectors):.3f}  ({len(vectors[0])} against {len(vectors[1])} pictures)")
    print(f"features: {distances.NETWORKS[network]}; covariances divide by N - 1")


def _of_one_size(pictures: dict[Path, Tensor]) -> Tensor:
    import torch

    sizes = {tuple(x.shape[2:]): path for path, x in pictures.items()}
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise ShapeError(
            f"{one} of {a[1]}x{a[0]} pixels and {other} of {b[1]}x{b[0]}",
            expected="pictures of the same size",
            do="resize them, or pass --size EDGE",
        )
    return torch.cat(list(pictures.values()))


@app.command()
def align(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files, each of one person.", metavar="PICTURE")],
    out: Annotated[Path, typer.Option(help="Folder for the results, FOLDER/NAME.png.", metavar="FOLDER")],
    size: Annotated[int, typer.Option(help="Edge of the results in pixels.", min=1)] = 1024,
    face: Annotated[
        int | None,
        typer.Option(help="Which of several faces: 0 is the largest; default: refuse such a picture.", min=0),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results (never a PICTURE).")] = False,
) -> None:
    """Cut out faces as FFHQ's pictures show them, so that its generators can invert them (needs `make faces`).

    Exits with 1 if a picture could not be aligned.
    """
    from .. import faces, image, store
    from ..errors import FaceError, ImageError

    results = {path: out / f"{path.stem}.png" for path in pictures}
    if len(set(results.values())) < len(results):
        raise StoreError(f"{len(pictures)} pictures", expected="different file names", do="rename those that share one")
    for result in results.values():
        store.new(result, force=force, source=pictures)
    failed = 0
    for path, result in results.items():
        try:
            x = image.read(path)
            place = faces.square(faces.the_face(x, face=face, size=size, what=str(path)).points)
        except (FaceError, ImageError) as e:
            failed += 1
            print(f"{type(e).__name__}: {e}", file=sys.stderr)
            continue
        image.write(faces.cut(x, place, size), result)
        beyond = place.outside(tuple(x.shape[2:]))
        mirrored = f", {beyond:.0%} of it mirrored beyond the picture's edges" if beyond >= 0.005 else ""
        print(f"{result}: a square of {place.side:.0f} px, turned by {place.degrees:+.1f} degrees{mirrored}")
    if failed:
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="An NVlabs .pkl or a PyTorch checkpoint.", metavar="FILE")],
    destination: Annotated[
        Path | None, typer.Argument(help="Output file; default: FILE.safetensors, next to FILE.", metavar="DST")
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            help='Network to extract: "G_ema", "G" or "D" (StyleGAN2), "identity" (IR-SE50), "stylist" (DualStyleGAN, '
            'StarGAN v2) or "generator3d" (CIPS-3D).'
        ),
    ] = "G_ema",
    half: Annotated[
        bool, typer.Option("--half", help="Store 16-bit floats: half the size, about 3 significant digits.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing DST (never FILE itself).")] = False,
) -> None:
    """Convert another project's checkpoint to .safetensors, without executing any code in it."""
    from .. import weights

    print(f"{weights.convert(source, destination, which=which, half=half, force=force)} written")


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Names in the catalogue; data/README.md lists them.", metavar="NAME")
    ],
) -> None:
    """Download and verify weight files from the catalogue. By downloading you accept their licences."""
    from .. import weights

    entries = [weights.entry(name) for name in names]
    # Files that have no URL come first: they raise an error before anything is downloaded.
    for entry in sorted(entries, key=lambda e: e.url is not None):
        print(f"{entry.name}: from {entry.origin}; licence: {entry.licence}", flush=True)
        print(f"  {weights.fetch(entry.name)}", flush=True)


@app.command(
    add_help_option=False,  # `hrlab train --help` shows the help of the training commands
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Train networks; `hrlab train --help` lists the commands."""
    from ..training.cli import app as training

    code = training(args=context.args, prog_name="hrlab train", standalone_mode=False)
    if code == 130:
        raise KeyboardInterrupt
    raise typer.Exit(code or 0)
