"""The command `hrlab`. Everything heavy is imported inside the commands, so that help and errors come at once."""

from __future__ import annotations

import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from .errors import HRLibError, number

GO_ON = ("run", "invert", "gallery", "train", "fetch")  # what an interruption does not undo


class Commands(TyperGroup):
    """Says what an interrupted command has left."""

    def invoke(self, ctx: typer.Context) -> object:
        """Called by Typer, which would end in silence."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            more = "; give the same command again to go on" if ctx.invoked_subcommand in GO_ON else ""
            print(f"interrupted{more}", file=sys.stderr)
            raise typer.Exit(130) from None


if TYPE_CHECKING:
    from torch import Tensor

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the notebooks of the HRInversion companion, and look after what they need.",
)


galleries = typer.Typer(no_args_is_help=True, help="Style galleries: pictures of a domain as codes of its generator.")
app.add_typer(galleries, name="gallery")


class Profile(StrEnum):
    """The scales of design.md."""

    smoke = "smoke"
    laptop = "laptop"
    paper = "paper"


Names = Annotated[list[str] | None, typer.Argument(help='Notebooks, e.g. "02" (all by default).', metavar="[NB]...")]
Scale = Annotated[Profile, typer.Option("--profile", "-p", help="Which values the parameters take.")]


@app.command("list")
def list_(profile: Scale = Profile.laptop) -> None:
    """List the notebooks: paper section, minutes, and whether their figures are up to date."""
    from rich.console import Console
    from rich.table import Column, Table

    from .runner.batch import plan as make_plan

    chosen = make_plan((), profile.value)
    table = Table(Column("notebook", no_wrap=True), "title", "paper", "minutes", "its figures")
    for nb in chosen.known.values():
        minutes = ", ".join(f"{p} {m:g}" for p, m in nb.minutes.items())
        table.add_row(nb.name, nb.title, nb.section, minutes, chosen.why(nb.name) or "up to date")
    Console(markup=False).print(table)
    _say_strays()


def _say_strays() -> list[str]:
    """One line for every file among the notebooks that is left out; returns those of them that profiles.yaml names."""
    from .lab.notebook import profiles, scan

    strays = scan()[1]
    for name, problem in strays.items():
        print(f"left out: notebooks/{name}.ipynb ({problem.got})", file=sys.stderr)
    return [name for name in strays if name in profiles()]


@app.command()
def plan(notebooks: Names = None, profile: Scale = Profile.laptop) -> None:
    """Say what `run` would do, and why, without running anything."""
    from rich.console import Console
    from rich.table import Column, Table

    from .runner.batch import plan as make_plan

    chosen = make_plan(notebooks or (), profile.value)
    table = Table(Column("notebook", no_wrap=True), "needs", "minutes", "what will happen")
    for name in chosen.order:
        nb = chosen.known[name]
        why = chosen.why(name)
        minutes = nb.minutes.get(profile.value)
        what = f"run ({why})" if why else "up to date"
        table.add_row(name, ", ".join(nb.needs), f"{minutes:g}" if minutes else "", what)
    Console(markup=False).print(table)
    if not notebooks:
        _say_strays()


@app.command()
def run(
    notebooks: Names = None,
    profile: Scale = Profile.laptop,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="How many notebooks run at a time.")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Keep results that are still good, or make those named anew.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Minutes a notebook may take; 0 for no limit.")] = 0,
    scheduler: Annotated[
        str,
        typer.Option(help="Address of a Dask scheduler whose workers perform the sweeps, e.g. tcp://10.0.0.5:8786."),
    ] = "",
) -> None:
    """Run notebooks and everything they need, and rewrite their figures, tables and numbers."""
    from .lab.place import figures_folder, root
    from .runner import batch, report

    jobs, timeout = number("--jobs", jobs, "whole [1, inf)"), number("--timeout", timeout, "[0, inf)")
    if scheduler:
        os.environ["HRLAB_SCHEDULER"] = scheduler  # the kernels inherit it; read in experiments/sweep.py
    damaged = [] if notebooks else _say_strays()
    chosen = batch.plan(notebooks or (), profile.value)
    named = [batch.find(n, chosen.known) for n in notebooks] if notebooks else chosen.order
    outcomes = batch.run(
        chosen,
        jobs=jobs,
        fresh=() if resume else named,
        timeout=timeout * 60 or None,
        tell=lambda text: print(text, flush=True),
    )
    folder = figures_folder(profile.value)
    executed = root() / "build" / "executed" / profile.value
    failed = report.failures(chosen, outcomes, executed)
    good = sum(o.state in ("done", "cached") for o in outcomes)
    print(f"{good} of {len(outcomes)} notebooks good; see {os.path.relpath(folder / 'index.md')}")
    if failed:
        print(f"\n{failed}", file=sys.stderr)
    if failed or damaged:
        raise typer.Exit(1)


@app.command()
def figures(profile: Scale = Profile.laptop) -> None:
    """List every figure and table with its caption, and whether its files are whole."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from .lab.notebook import catalogue
    from .lab.place import figures_folder
    from .runner import verify

    table, bad = Table("notebook", Column("name", no_wrap=True), "caption"), []
    for name, nb in catalogue().items():
        folder = figures_folder(profile.value) / name
        made = verify.sidecars(folder)
        for item in nb.makes:
            table.add_row(name, item, made[item]["caption"] if item in made else Text("not made", "red"))
        bad += [f"{name}: {problem}" for problem in verify.problems(folder, nb)]
    Console(markup=False).print(table)
    if bad:
        print("\n".join(bad), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def claims(
    profile: Scale = Profile.laptop,
    section: Annotated[str, typer.Option(help='Only those of a section of the paper, e.g. "IV-C" or "IV".')] = "",
    readme: Annotated[bool, typer.Option("--readme", help="Also write README.md's block (profile laptop).")] = False,
) -> None:
    """Print the ledger: what the paper states, and what the recorded numbers say of it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from . import store
    from .errors import UnknownName, nearest
    from .lab.place import root
    from .runner import ledger
    from .runner.claims import ledger as judged

    if readme and profile != Profile.laptop:
        raise typer.BadParameter("README.md shows the laptop profile", param_hint="--readme")
    verdicts = judged(profile.value)
    if readme:
        path = root() / "README.md"
        store.write_bytes(path, ledger.with_block(path.read_text(encoding="utf-8"), verdicts).encode())
    chosen = [v for v in verdicts if not section or f"{v.claim.section}-".startswith(f"{section}-")]
    if not chosen:
        known = list(dict.fromkeys(v.claim.section for v in verdicts))
        hint = nearest(section, known) or "choose one"
        raise UnknownName(f"section {section!r}", expected=f"one of {known}", do=hint)
    table = Table(Column("section", no_wrap=True), show_lines=True, expand=True)
    for name, ratio in {"claim": 5, "verdict": 2, "effect ± spread": 3, "n": None, "paper": 3}.items():
        table.add_column(name, ratio=ratio, overflow="fold")
    for v in chosen:
        named = f"[bold]{v.claim.id}[/bold]\n{escape(v.claim.statement)}"
        table.add_row(v.claim.section, named, *map(escape, (*ledger.cells(v), v.claim.paper)))
    Console().print(table)
    print(ledger.summary(chosen))
    if problems := [p for v in chosen for p in v.problems]:
        print("\n".join(problems), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="As in data/README.md.", metavar="NAME...")],
) -> None:
    """Download catalogued weight files and check them; to do so is to accept their licences."""
    from . import weights

    entries = [weights.entry(name) for name in names]
    for entry in sorted(
        entries, key=lambda e: e.url is not None
    ):  # what must be got by hand is an error before any work
        print(f"{entry.name}: from {entry.origin}; licence: {entry.licence}", flush=True)
        print(f"  {weights.fetch(entry.name)}", flush=True)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="An NVlabs .pkl, or a torch file.", metavar="FILE")],
    destination: Annotated[
        Path | None, typer.Argument(help="Default: FILE.safetensors, beside it.", metavar="[DST]")
    ] = None,
    which: Annotated[
        str,
        typer.Option(
            help='"G_ema", "G", "D" of a StyleGAN2; "identity": IR-SE50; "stylist": DualStyleGAN, StarGAN v2; '
            '"generator3d": CIPS-3D.'
        ),
    ] = "G_ema",
    half: Annotated[bool, typer.Option("--half", help="Store numbers in 16 bits: half the size, 3 digits.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it is there; never FILE.")] = False,
) -> None:
    """Convert a foreign checkpoint to .safetensors; nothing in it is executed."""
    from . import weights

    print(f"{weights.convert(source, destination, which=which, half=half, force=force)} written")


@app.command()
def invert(
    picture: Annotated[str, typer.Argument(help='A file, or a name such as "scene:17" or "photo:coffee".')],
    out: Annotated[Path, typer.Option(help="A new or empty folder for the run, or that of an interrupted one.")],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; by default a file's own size.")] = "",
    generator: Annotated[str, typer.Option(help="A Style-INR-GAN: catalogue name or file.")] = "scenes_inr128",
    perceptual: Annotated[str, typer.Option(help='VGG16 of the loss: "shipped", "imagenet" or a file.')] = "shipped",
    memory: Annotated[
        str, typer.Option(help='Of the whole process, e.g. "4GB"; by default most of what is free.')
    ] = "",
    num_steps: Annotated[int, typer.Option(help="Of Adam.", min=1)] = 50,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1.0,
    mse: Annotated[float, typer.Option(help="Weight of the squared pixel error, summed over the picture.")] = 0.001,
    seed: Annotated[int, typer.Option(help="Of the exploration noise.")] = 0,
    every: Annotated[int, typer.Option(help="Steps between two checkpoints and previews.", min=1)] = 10,
    suffix: Annotated[str, typer.Option("--format", help="png, jpg or tif (tiled).")] = "png",
    force: Annotated[
        bool, typer.Option("--force", help="Start afresh in any folder; files of the run's own names are replaced.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--plan", help="Print the memory plan and stop.")] = False,
) -> None:
    """Invert a picture of any size and aspect ratio within a given memory (Sec. IV-F)."""
    from . import image
    from .experiments import panoramas
    from .lab.place import root
    from .worlds.pictures import picture as read

    settings = panoramas.Settings(generator, perceptual, num_steps=num_steps, lr=lr, mse=mse, seed=seed)
    wanted = image.sides(_size(size)) if size else None
    if dry_run and wanted:  # the size alone decides
        print(panoramas.plan(settings, wanted, memory=memory or None))
        return
    name = picture if picture.partition(":")[1] else f"file:{Path(picture).resolve()}"
    x = read(name, wanted)
    if dry_run:
        print(panoramas.plan(settings, tuple(x.shape[2:]), memory=memory or None))
        return
    source = root() / name.removeprefix("file:") if name.startswith("file:") else None
    how = dict(title=picture, memory=memory or None, every=every, suffix=f".{suffix.lstrip('.')}")
    facts = panoramas.reconstruct_into(x, out, settings, source=source, force=force, **how)
    print(", ".join(f"{name} {value:.3f}" for name, value in facts["whole"].items()))
    print(f"{facts['seconds_per_step']:.1f} s a step, peak {facts['peak'] / 1e9:.2f} GB; see {out / 'zoom/index.html'}")


def _size(text: str) -> tuple[int, int]:
    """(H, W) of "WIDTHxHEIGHT"."""
    found = re.fullmatch(r"0*([1-9][0-9]{0,8})x0*([1-9][0-9]{0,8})", text.lower())
    if not found:
        raise typer.BadParameter(f"got {text!r}, expected WIDTHxHEIGHT such as 6143x1677", param_hint="--size")
    return int(found[2]), int(found[1])


@galleries.command("build")
def build_gallery(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures of the generator's domain.")],
    generator: Annotated[str, typer.Option(help="That draws the domain: catalogue name or file.")],
    out: Annotated[Path | None, typer.Option(help="Default: FOLDER/GENERATOR.gallery.safetensors.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Crop, resize and flatten pictures that do not fit.")] = False,
    num_steps: Annotated[int, typer.Option(help="Of each inversion.", min=1)] = 150,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.1,
    lam_mse: Annotated[float, typer.Option(help="lambda_mse of Eq. (5).")] = 3.0,
    perceptual: Annotated[str, typer.Option(help='VGG16 of the loss: "shipped", "imagenet" or a file.')] = "shipped",
    workers: Annotated[int, typer.Option(help="Processes; 0 works in this one.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a gallery that is there.")] = False,
) -> None:
    """Invert every picture of a folder once and store the codes; goes on where an interrupted build stopped."""
    from .experiments import galleries as rooms
    from .worlds.pictures import listed

    name = Path(generator).stem if Path(generator).is_file() else Path(generator).name  # a name may have dots
    path = out or folder / f"{name}.gallery.safetensors"
    images = listed([f"folder:{folder.resolve()}"])
    how = dict(num_steps=num_steps, lr=lr, lam_mse=lam_mse, perceptual=perceptual, fit=fit, workers=workers)
    built = rooms.build(images, generator=generator, path=path, label=folder.name, force=force, **how)
    failed = built.table[built.table["error"] != ""]
    done = f"{len(built.gallery)} of {len(images)} pictures"
    print(f"{built.path}: {done}, mean PSNR {built.table['psnr'].mean():.1f} dB")
    if len(failed):
        print("\n".join(f"{Path(r.image).name}: {r.error}" for r in failed.itertuples()), file=sys.stderr)
        raise typer.Exit(1)


@app.command("id-retrieval")
def id_retrieval(
    content: Annotated[Path, typer.Argument(help="Folder of content pictures, ID.png each (any format).")],
    stylised: Annotated[Path, typer.Argument(help="Folder with a folder ID of stylised pictures for each content.")],
    network: Annotated[
        str,
        typer.Option(
            help='"ir_se50" (the paper\'s), "identity_thin" (shipped portraits only), a file, module:function.'
        ),
    ] = "ir_se50",
    face: Annotated[
        str, typer.Option(help='"whole" pictures, as in the paper, or "crop" of aligned portraits.')
    ] = "whole",
    bgr: Annotated[bool, typer.Option("--bgr", help="Feed IR-SE50 the colour order of its training.")] = False,
    threshold: Annotated[float, typer.Option(help="Squared distance above which nobody is found.")] = 1.5,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 32,
    device: Annotated[str, typer.Option(help='"cpu", "cuda" or "auto".')] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write tables and pictures into this new or empty folder.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take any folder; files of the report's own names are replaced.")
    ] = False,
) -> None:
    """How many stylised pictures keep their person (Sec. III-D); exit code 1 if some could not be looked up."""
    import contextlib

    from . import devices, retrieval, store, weights
    from .errors import number
    from .lab.progress_bar import progress

    where, threshold = devices.choose(device), number("threshold", threshold, "[0, inf)")
    retrieval.check_face(face)
    retrieval.scan(content, stylised)  # a folder that is not there is told before OUT is taken
    if ":" in network and not Path(network).exists():
        net = retrieval.users_own(network)
    else:
        net = weights.load_identity(network, where, bgr=bgr)
        on_device, net = net, lambda x: on_device.embed(x.to(where))
    identity = dict(network=network, face=face, bgr=bgr, threshold=threshold)
    identity |= dict(content=str(content.resolve()), stylised=str(stylised.resolve()))
    with contextlib.ExitStack() as stack:
        if out:
            from .lab import retrieval_report  # with matplotlib, which the numbers alone do not need

            retrieval_report.apart(out, content, stylised)
            stack.enter_context(store.claimed(out, "report", identity, files=retrieval_report.FILES, force=force))
        steps = retrieval.evaluate(content, stylised, net, face=face, batch=batch, threshold=threshold)
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
    stylised: Annotated[Path, typer.Argument(help="Folder of pictures, and its subfolders.")],
    reference: Annotated[Path, typer.Argument(help="Folder of pictures to compare with, and its subfolders.")],
    network: Annotated[str, typer.Option(help='"inception" (the paper\'s) or "vgg16_thin".')] = "inception",
    size: Annotated[int, typer.Option(help="Edge to which pictures are resized first; 0 leaves them.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 32,
) -> None:
    """Frechet distance between two folders of pictures, each of one size."""
    import torch

    from . import fid as distances
    from . import image
    from .errors import StoreError
    from .lab.progress_bar import progress

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

    from .errors import ShapeError

    sizes = {tuple(x.shape[2:]): path for path, x in pictures.items()}
    if len(sizes) > 1:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise ShapeError(
            f"{one} of {a[1]}x{a[0]} pixels and {other} of {b[1]}x{b[0]}",
            expected="pictures of one size",
            do="resize them, or let us: --size EDGE",
        )
    return torch.cat(list(pictures.values()))


@app.command()
def doctor(profile: Scale = Profile.laptop) -> None:
    """Say what is there and what is missing for a profile, and what to do about it."""
    from rich.console import Console
    from rich.markup import escape

    from .runner.doctor import examine

    console, missing = Console(highlight=False), 0
    for f in examine(profile.value):
        mark = "[green]✓[/green]" if f.good else "[red]✗[/red]" if f.needed else "[yellow]○[/yellow]"
        console.print(f"{mark} {escape(f.what)}: {escape(f.found)}", soft_wrap=True)
        if not f.good and f.do:
            console.print(f"    {escape(f.do)}", soft_wrap=True)
        missing += f.needed and not f.good
    console.print(f"{missing} needed and missing" if missing else f"ready for profile {profile.value}")
    if missing:
        raise typer.Exit(1)


@app.command(
    add_help_option=False,  # `hrlab train --help` is the sub-command's own help
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train(context: typer.Context) -> None:
    """Train the networks (see `hrlab train --help`)."""
    from .training.cli import app as training

    code = training(args=context.args, prog_name="hrlab train", standalone_mode=False)
    if code == 130:
        raise KeyboardInterrupt
    raise typer.Exit(code or 0)


def main() -> None:
    """Entry point: errors of ours, and those of the file system, are messages, not tracebacks."""
    try:
        app()
    except HRLibError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        places = "files and folders that this user may read and write, on disks with room"
        print(HRLibError(f"{type(e).__name__}: {e}", expected=places, do="check that path"), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
