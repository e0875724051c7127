"""A page of what `speed.py` and `fewer_steps.py` have measured: benchmarks/results/speed.md, with plots.

    python benchmarks/tables.py

The site shows it (`make site`). Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from matplotlib.ticker import LogLocator

from hrlib import lab, store

RESULTS = Path(__file__).parent / "results"
ABOUT = """# How fast

The library beside a plain loop in textbook operations, `benchmarks/reference.py`: the same step, the same numbers.
Ratios are reference / library, taken in turns, with the least and the greatest; memory is the peak beyond the loaded
networks, – where loading needed more than the step.
*Shipped*: the thin networks of this repository; *full*: StyleGAN2 and VGG16 of the published widths, random weights;
*ffhq*: MobileStyleGAN and EfficientNet-Lite0. LSO has all codes and noise maps."""
SOONER = """## How soon

Whole inversions of unseen pictures (codes and noise maps) against the projector's schedule in textbook operations.
*Few steps* is `inversion.QUICK` (at 1024 pixels with lower rates, `experiments.own_size`), *start* a start of
`hrlib.starts`; both are additions to the paper's method. Here the reference, too, keeps the memory that it frees
(`hrlib.devices`), which at 1024 pixels makes its step nearly as fast as the library's."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps_of(rows: dict[str, dict]) -> str:
    """The table of `speed.py`."""
    rank = lambda r: (
        ["shipped", "full", "ffhq"].index(r["network"]),
        r["task"],
        bool(r.get("bf16")),
        r["size"],
        r["batch"],
    )
    # a step that needs less than loading its networks did: the peak of a process cannot tell how much
    hidden = lambda r: min(r["ours_memory"], r["reference_memory"]) < 32 * 2**20
    ratio = lambda r, what: f"{r[f'{what}_ratio']:.2f} ({r[f'{what}_least']:.2f} to {r[f'{what}_most']:.2f})"
    return table(
        ("step", "ms", "MiB", "time, reference / library", "memory, reference / library"),
        (
            (
                name.replace(";", ","),
                f"{1000 * r['ours_seconds']:.0f}",
                "–" if hidden(r) else f"{r['ours_memory'] / 2**20:.0f}",
                ratio(r, "seconds"),
                "–" if hidden(r) else ratio(r, "memory"),
            )
            for name, r in sorted(rows.items(), key=lambda item: rank(item[1]))
        ),
    )


def wholes_of(worlds: dict[str, list[dict]]) -> str:
    """The table of `fewer_steps.py`."""
    head = ("world", "inversion", "steps", "seconds", "of the reference's", "PSNR, dB (least)", "LPIPS", "n")
    return table(
        head,
        (
            (
                world,
                r["line"],
                str(r["steps"]),
                f"{mean(r['seconds']):.0f}",
                f"1/{mean(rows[0]['seconds']) / mean(r['seconds']):.1f}",
                f"{mean(r['psnr']):.2f} ({min(r['psnr']):.1f})",
                f"{mean(r['lpips']):.4f}",
                str(len(r["psnr"])),
            )
            for world, rows in worlds.items()
            for r in rows
        ),
    )


def growth(rows: dict[str, dict], file: Path) -> None:
    """Seconds and memory of a step over the picture's edge, and over the batch."""
    fig, axes = lab.subplots(1, 3, width=9, height=2.8)
    some = [r for r in rows.values() if r["task"] == "w+, n" and not r.get("bf16")]
    full = sorted((r for r in some if r["network"] == "full" and r["batch"] == 1), key=lambda r: r["size"])
    batches = sorted((r for r in some if r["network"] == "shipped"), key=lambda r: r["batch"])
    for which, colour in (("reference", lab.COLOURS[1]), ("ours", lab.COLOURS[0])):
        label = "library" if which == "ours" else which
        axes[0].plot([r["size"] for r in full], [r[f"{which}_seconds"] for r in full], "o-", color=colour, label=label)
        axes[1].plot([r["size"] for r in full], [r[f"{which}_memory"] / 2**30 for r in full], "o-", color=colour)
        each = [1000 * r[f"{which}_seconds"] / r["batch"] for r in batches]
        axes[2].plot([r["batch"] for r in batches], each, "o-", color=colour)
    for ax, unit in zip(axes[:2], ("seconds a step", "memory of a step (GiB)"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="edge (pixels), full width", ylabel=unit)
        ax.set_xticks([r["size"] for r in full], [str(r["size"]) for r in full])
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    axes[2].set(xscale="log", xlabel="batch, shipped networks, 128 px", ylabel="ms a picture", ylim=(0, None))
    axes[2].set_xticks([r["batch"] for r in batches], [str(r["batch"]) for r in batches])
    axes[2].minorticks_off()
    axes[0].legend()
    fig.savefig(file, metadata={"Date": None})


def main() -> None:
    parts = [ABOUT]
    for name, text, rows_of in (("speed", "", steps_of), ("fewer_steps", SOONER, wholes_of)):
        found = store.read_json(RESULTS / f"{name}.json")
        parts += [text] * bool(text)
        for machine, rows in found.items():
            parts += [f"**{machine}**", rows_of(rows)]
            sizes = {r["size"] for r in rows.values() if r["network"] == "full"} if name == "speed" else set()
            if len(sizes) > 1 and not any("growth.svg" in part for part in parts):
                growth(rows, RESULTS / "growth.svg")
                parts.append(
                    "![Three plots of reference and library: seconds a step and memory over the edge, "
                    "milliseconds a picture over the batch.](growth.svg)"
                )
    store.write_bytes(RESULTS / "speed.md", ("\n\n".join(parts) + "\n").encode())
    print(RESULTS / "speed.md")


if __name__ == "__main__":
    main()
