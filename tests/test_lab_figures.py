"""Figures, tables and numbers: what is written, what is refused, and that the bytes repeat."""

from __future__ import annotations

import base64
import io
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from hrlib import lab, losses, store, weights
from hrlib.errors import BatchError, InvalidValue, ShapeError, StoreError, UnknownName
from hrlib.lab import diagrams, figures, notebook, plots
from hrlib.lab.records import Records

ALT = "two small squares of coloured noise, side by side"
CAPTION = "The same text as the caption has, word for word."


@pytest.fixture
def run(write_notebook, repo, capsys):
    write_notebook("00_a", "seed = 3\nsteps = 7", [], makes=["fig"], needs=["01_b"])
    return lab.begin("00_a", {"seed": 3, "steps": 7, "other": object()})


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_begin_picks_the_parameters_seeds_and_says_so(run, repo, capsys):
    assert run.parameters == {"seed": 3, "steps": 7} and run.profile == "laptop" and not run.live
    assert run.out == repo / "build/live/00_a"
    first = torch.rand(3), np.random.rand(3)
    lab.begin("00_a", {"seed": 3, "steps": 7})
    assert torch.equal(first[0], torch.rand(3)) and np.array_equal(first[1], np.random.rand(3))
    assert "profile laptop · cpu" in capsys.readouterr().out


def test_notebooks_run_by_hand_keep_away_from_the_committed_figures(repo, write_notebook, monkeypatch, capsys):
    write_notebook("00_a", "steps = 7", [])
    (repo / "notebooks/profiles.yaml").write_text("00_a: {smoke: {steps: 1}}")
    for steps, profile in ((7, "laptop"), (1, "smoke"), (2, "custom")):
        run = lab.begin("00_a", {"steps": steps})
        assert run.profile == profile and run.out == repo / "build/live/00_a"
    run.finish()
    assert "in build/live/00_a" in capsys.readouterr().out and not (repo / "figures").exists()
    monkeypatch.setenv("HRLAB_OUT", str(repo / "there"))  # the batch says where
    assert lab.begin("00_a", {"steps": 7}).out == repo / "there"


def test_begin_refuses(run):
    with pytest.raises(UnknownName, match="did you mean '00_a'"):
        lab.begin("00_b", {})
    with pytest.raises(BatchError, match=r"\['steps'\] are not set"):
        lab.begin("00_a", {"seed": 1})
    with pytest.raises(InvalidValue, match="JSON type string"):
        lab.begin("00_a", {"seed": 1, "steps": "7"})


def test_a_picture_is_one_webp_and_shows_its_alt_text(run, monkeypatch):
    shown = []
    monkeypatch.setattr("hrlib.lab.session._display", shown.append)
    fig = lab.image_grid([noise(3, 8, 8), noise(3, 8, 8)], width=9)
    run.figure(fig, "fig", alt=ALT, caption='Noise, "twice" <b>')
    side = json.loads((run.out / "fig.json").read_text())
    assert side["parameters"] == {"seed": 3, "steps": 7} and side["seed"] == 3 and side["alt"] == ALT
    assert side["versions"]["torch"] == torch.__version__ and side["volatile"] is False
    assert not {"commit", "date", "seconds"} & set(side), "a sidecar says nothing that differs from run to run"
    assert sorted(p.name for p in run.out.iterdir()) == ["fig.json", "fig.webp"]
    assert side["files"] == {"fig.webp": store.sha256(run.out / "fig.webp")}
    assert Image.open(run.out / "fig.webp").width == figures.PICTURE_WIDTH < 9 * figures.DPI
    assert f'alt="{ALT}"' in shown[0] and "<figcaption>Noise, &quot;twice&quot; &lt;b&gt;" in shown[0]
    kept = base64.b64encode((run.out / "fig.webp").read_bytes()).decode()
    assert f"data:image/webp;base64,{kept}" in shown[0], "a notebook shows the bytes that are kept"


def test_a_film_gets_a_sidecar_of_its_own(run, monkeypatch):
    shown = []
    monkeypatch.setattr("hrlib.lab.session._display", shown.append)
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(run.file("fig.webp"), save_all=True, append_images=frames[1:])
    run.film("fig", alt=ALT, caption="It moves.")
    side = json.loads((run.out / "fig.json").read_text())
    assert side["kind"] == "figure" and side["alt"] == ALT and side["parameters"] == {"seed": 3, "steps": 7}
    assert side["files"] == {"fig.webp": store.sha256(run.out / "fig.webp")} and ALT in shown[0]
    assert Image.open(run.out / "fig.webp").n_frames == 2
    with pytest.raises(InvalidValue, match="30 characters"):
        run.film("fig", alt="short", caption="It moves.")


def plot(width: float = 7.0):
    fig, ax = lab.subplots(width=width, height=2)
    ax.plot([1, 2, 3], label="a")
    ax.set_xlabel("sigma of the noise")
    ax.legend()
    return fig


def test_a_plot_is_an_svg_and_a_small_png(run, monkeypatch):
    shown = []
    monkeypatch.setattr("hrlib.lab.session._display", shown.append)
    run.figure(plot(), "fig", alt=ALT, caption="Lines.", volatile=True)
    assert sorted(p.name for p in run.out.iterdir()) == ["fig.json", "fig.png", "fig.svg"]
    small = Image.open(run.out / "fig.png")
    assert (small.width, small.mode) == (figures.PLOT_WIDTH, "P")
    words = "".join(ET.parse(run.out / "fig.svg").getroot().itertext())
    assert "sigma of the noise" in words and ALT in words, "text stays text"
    assert "data:image/png" in shown[0]
    assert json.loads((run.out / "fig.json").read_text())["volatile"] is True


def test_figures_repeat_to_the_byte():
    for make in (plot, lambda: lab.image_grid([noise(3, 32, 32)], titles=["a"], insets=[(0, 0, 0.5, 0.5)])):
        one, two = (figures.files(figures.png(f), figures.svg(f, title="t", alt=ALT)) for f in (make(), make()))
        assert one == two


def test_a_plot_of_too_many_elements_is_a_picture(monkeypatch):
    fig = plot()
    drawing = figures.svg(fig, title="t", alt=ALT)
    assert list(figures.files(figures.png(fig), drawing)) == [".png", ".svg"]
    monkeypatch.setattr(figures, "SVG_LIMIT", len(drawing) - 1)
    assert list(figures.files(figures.png(fig), drawing)) == [".webp"]


def test_small_figures_are_not_enlarged():
    fig = plot(width=2)
    made = figures.files(figures.png(fig), figures.svg(fig, title="t", alt=ALT))
    assert Image.open(io.BytesIO(made[".png"])).width == 2 * figures.DPI


@pytest.mark.parametrize("alt", ["", "a figure", " " * 40, CAPTION])
def test_alt_text_is_not_optional(run, alt):
    with pytest.raises(InvalidValue, match="alt text"):
        run.figure(
            lab.image_grid([noise(3, 8, 8)]), "fig", alt=alt, caption="The same text as the caption has, word for word."
        )
    assert not list(run.out.iterdir())


@pytest.mark.parametrize("name", ["../fig", "a/b", "Fig 1", "records", "fig.png", ""])
def test_figure_names_are_plain(run, name):
    with pytest.raises((InvalidValue, StoreError)):
        run.figure(lab.image_grid([noise(3, 8, 8)]), name, alt=ALT, caption="c")


def test_table(run, monkeypatch):
    monkeypatch.setattr("hrlib.lab.session._display", lambda html: None)
    df = pd.DataFrame({"loss": ["a|b", "c"], "dB": [1 / 3, 2.0]})
    run.table(df, "tab", caption="Numbers.")
    assert pd.read_csv(run.out / "tab.csv")["dB"].tolist() == [1 / 3, 2.0]
    assert (run.out / "tab.md").read_text() == "| loss | dB |\n| --- | --- |\n| a\\|b | 0.33 |\n| c | 2.00 |\n"
    run.table(df.set_index("loss"), "tab", caption="Numbers.")
    assert (run.out / "tab.csv").read_text().startswith("loss,dB")
    with pytest.raises(InvalidValue, match="without rows"):
        run.table(df[:0], "tab", caption="Numbers.")


def test_records_are_finite_tidy_and_compared(run, monkeypatch):
    shown = []
    monkeypatch.setattr("hrlib.lab.session._display", shown.append)
    run.record("psnr/conv", torch.tensor(33.5), unit="dB", paper=33.0, n=3, spread=np.float64(0.25))
    run.record("name", "vgg")
    run.record("psnr/relu", 30, unit="dB")
    frame = run.compare("psnr/")
    assert frame.loc["psnr/conv", "ours − paper"] == 0.5 and frame.loc["psnr/relu", "paper"] == ""
    assert "33.500" in shown[0]
    run.finish()
    rows = json.loads((run.out / "records.json").read_text())
    assert [r["key"] for r in rows] == ["name", "psnr/conv", "psnr/relu"]
    means = {"key": "psnr/conv", "value": 33.5, "unit": "dB", "paper": 33.0, "n": 3, "spread": 0.25, "interval": None}
    assert rows[1] == means | {"volatile": False}


def test_record_mean_keeps_the_evidence_there_is(run):
    for n in (1, 2, 5):
        run.record_mean(f"gain/{n}", np.arange(n) + 1.0, unit="dB", paper=2.0)
    one, two, five = run.records.rows()
    assert (one["value"], one["n"], one["spread"], one["interval"]) == (1.0, 1, None, None)
    assert (two["n"], two["interval"]) == (2, None) and two["spread"] == pytest.approx(0.5**0.5)
    assert five["spread"] == pytest.approx(2.5**0.5) and 1 < five["interval"][0] < 3 < five["interval"][1] < 5
    assert (five["unit"], five["paper"]) == ("dB", 2.0)
    with pytest.raises(InvalidValue, match="1 of 2 finite"):
        run.record_mean("gain/bad", [1.0, math.nan])


@pytest.mark.parametrize(
    ("key", "value"),
    [("a", math.nan), ("a", math.inf), ("a", None), ("a", [1]), ("A b", 1.0), ("a//b", 1.0), ("", 1.0)],
)
def test_records_refuse(key, value):
    with pytest.raises(InvalidValue):
        Records().add(key, value)


def test_finish_names_what_is_missing_and_what_is_extra(run, monkeypatch, capsys):
    monkeypatch.setattr("hrlib.lab.session._display", lambda html: None)
    run.figure(lab.image_grid([noise(3, 8, 8)]), "other", alt=ALT, caption="c")
    run.finish()
    said = capsys.readouterr().out
    assert "not made in this run, though the notebook's metadata lists them: fig" in said and "`makes`: other" in said


def test_files_between_notebooks(run, repo):
    with pytest.raises(UnknownName, match="`needs`"):
        run.upstream("02_c", "codes.npz")
    with pytest.raises(StoreError, match="run 01_b first"):
        run.upstream("01_b", "codes.npz")
    with pytest.raises(StoreError, match="leaves the folder"):
        run.file("../x")
    for place in ("figures/01_b", "build/live/01_b"):  # what was tried by hand goes before what is committed
        (repo / place).mkdir(parents=True)
        (repo / place / "codes.npz").touch()
        assert run.upstream("01_b", "codes.npz") == repo / place / "codes.npz"


# --- image_grid -------------------------------------------------------------------------------------------------------


def test_grid_cells_are_equal_and_insets_show_the_pixels_of_their_box():
    image = noise(3, 32, 48)
    fig = lab.image_grid(
        [[image, image], [image, None]],
        titles=["a", "b"],
        captions=[["", "1 dB"], ["", ""]],
        row_labels=["x", "y"],
        insets={0: [(0.25, 0.5, 0.25, 0.25), (0, 0, 0.5, 0.5)]},
    )
    big = [ax for ax in fig.axes if ax.images and ax.images[0].get_array().shape == (32, 48, 3)]
    assert len(big) == 3
    sizes = {tuple(np.round(ax.get_position().size, 6)) for ax in big}
    assert len(sizes) == 1
    w, h = big[0].get_position().size * fig.get_size_inches()
    assert w / h == pytest.approx(48 / 32)
    crops = [ax.images[0] for ax in fig.axes if ax.images and ax.images[0].get_array().shape == (8, 12, 3)]
    assert len(crops) == 2 and crops[0].get_interpolation() == "nearest"
    assert np.array_equal(crops[0].get_array(), plots.pixels(image)[16:24, 12:24])
    frame = big[0].patches[0]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (11.5, 15.5, 12, 8)
    boxes = [ax.get_position() for ax in fig.axes]
    assert all(b.x0 > -1e-6 and b.y0 > -1e-6 and b.x1 < 1 + 1e-6 and b.y1 < 1 + 1e-6 for b in boxes)


def test_maps_have_a_colour_bar_with_their_range():
    images = [lab.heat(noise(16, 16).abs(), vmax=2.0), noise(1, 3, 16, 16)]
    plain = lab.image_grid(images, width=4)
    fig = lab.image_grid(images, colour_bar=("error", 0.0, 2.0), width=4)
    assert len(fig.axes) == len(plain.axes) + 1 and fig.axes[-1].get_ylabel() == "error"
    assert tuple(fig.axes[-1].get_ylim()) == (0.0, 2.0)
    assert fig.axes[-1].get_position().x1 < 0.95, "its numbers stay inside the figure"


def test_grid_in_the_corner():
    fig = lab.image_grid([noise(1, 3, 16, 16), noise(16, 16)], insets=[(0, 0, 0.5, 0.5)], inset_place="corner", width=4)
    outer, inner = fig.axes[0].get_position(), fig.axes[1].get_position()
    assert (inner.x1, inner.y0) == (pytest.approx(outer.x1), pytest.approx(outer.y0))


@pytest.mark.parametrize(
    ("arguments", "words", "error"),
    [
        ({"images": []}, "nothing", ShapeError),
        ({"images": [[noise(3, 4, 4)], [noise(3, 4, 4)] * 2]}, "length", ShapeError),
        ({"images": [noise(2, 3, 4, 4)]}, "shape", ShapeError),
        ({"images": [torch.full((3, 4, 4), math.nan)]}, "finite", ShapeError),
        ({"images": [np.zeros((4, 4, 3))]}, "ndarray", ShapeError),
        ({"images": [noise(3, 4, 4)], "titles": ["a", "b"]}, "titles", ShapeError),
        ({"images": [noise(3, 4, 4)], "insets": [(0.8, 0, 0.5, 0.5)]}, "inset box", InvalidValue),
        ({"images": [noise(3, 4, 4)], "inset_place": "above"}, "inset_place", UnknownName),
    ],
)
def test_grid_refuses(arguments, words, error):
    with pytest.raises(error, match=words):
        lab.image_grid(**arguments)


def test_heat():
    x = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    picture = lab.heat(x)
    assert picture.shape == (3, 2, 2) and picture.min() >= -1 and picture.max() <= 1
    brightness = picture.mean(0).flatten()
    assert (brightness.diff() > 0).all()
    red, white, blue = lab.heat(torch.tensor([[1.0, 0.0, -1.0]]), vmin=-1, vmax=1, cmap="RdBu_r").squeeze(1).T
    assert red[0] > red[2] and blue[2] > blue[0] and (white > 0.9).all()


# --- diagrams ---------------------------------------------------------------------------------------------------------


def texts(fig) -> str:
    return "\n".join(text.get_text() for ax in fig.axes for text in ax.texts)


def test_the_map_shows_every_notebook_and_what_needs_what(repo, write_notebook):
    write_notebook("00_a", "x = 1", [], title="Start here", section="I", minutes={"laptop": 0.5})
    write_notebook("01_b", "x = 1", [], title="The second one", needs=["00"])
    write_notebook("02_c", "x = 1", [], title="The third one", needs=["01_b"])
    (repo / "notebooks/planned.yaml").write_text("13_d: {title: To come}")
    known, to_come = notebook.catalogue(), notebook.planned()
    chapters = {"Together": ["00", "01"], "Apart": ["02", "13"]}
    fig = diagrams.series(known, to_come, chapters)
    words = texts(fig)
    for shown in ("Together", "Apart", "00", "Start here", "Sec. I", "0.5 min", "01", "02", "13", "To come", "planned"):
        assert shown in words
    patches = fig.axes[0].patches
    assert [p.get_linestyle() for p in patches].count("--") == 1
    assert sum(isinstance(p, FancyArrowPatch) for p in patches) == 2, "00 -> 01 and 01 -> 02"
    with pytest.raises(InvalidValue, match="each of"):
        diagrams.series(known, to_come, {"Together": ["00", "01"]})
    with pytest.raises(InvalidValue, match="each of"):
        diagrams.series(known, to_come, chapters | {"Twice": ["00"]})
    with pytest.raises(UnknownName, match="'05'"):
        diagrams.series(known, to_come, chapters | {"More": ["05"]})


def test_the_flowchart_has_the_numbers_of_what_is_loaded():
    G = weights.load_generator("portraits_inr128")
    words = texts(diagrams.method(G, losses.named("vgg_conv", weights="shipped")))
    for shown in (f"{G.num_ws} codes of {G.w_dim}", "128 px", "full-size input", "hrlib.lso", "hrlib.retrieval"):
        assert shown in words
    assert "reduced to 256" in texts(diagrams.method(G, losses.named("vgg_conv", weights="shipped", resize=256)))
