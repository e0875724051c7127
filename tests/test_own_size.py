"""`hrlab invert` with several pictures, a folder, or a generator of one size."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from hrlib import cli, image, weights
from hrlib.errors import InvalidValue, LayoutMismatch, StoreError
from hrlib.experiments import own_size
from hrlib.inversion import NOISE

GENERATOR = "portraits_inr128"


@pytest.fixture
def folder(repo):
    pictures = repo / "pictures"
    pictures.mkdir()
    for i, name in enumerate(("a", "b")):
        image.write(
            torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(i)) * 2 - 1, pictures / f"{name}.png"
        )
    return pictures


def run(*words):
    return CliRunner().invoke(cli.app, ["invert", *map(str, words), "--generator", GENERATOR, "--num-steps", "2"])


def test_a_folder_is_inverted_and_a_bad_picture_costs_only_itself(folder, tmp_path):
    (folder / "c.png").write_bytes(b"no picture")
    before = {p: p.read_bytes() for p in folder.iterdir()}
    done = run(folder, "--out", tmp_path / "out")
    assert done.exit_code == 1 and "2 of 3 pictures" in done.output and "c.png" in done.output
    table = pd.read_csv(tmp_path / "out" / own_size.TABLE, keep_default_na=False)
    assert table["error"].ne("").tolist() == [False, False, True]
    assert image.read(tmp_path / "out" / "a.png").shape == (1, 3, 128, 128)
    G, codes = weights.load_generator(GENERATOR), weights.load_state(tmp_path / "out" / "a.safetensors")[0]
    noise = {k.removeprefix(NOISE): m for k, m in codes.items() if k.startswith(NOISE)}
    drawn = G.synthesis(codes["ws"], noise=noise).clamp(-1, 1)
    assert (drawn - image.read(tmp_path / "out" / "a.png")).abs().max() < 0.01, "the codes draw the reconstruction"
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_the_same_pictures_are_not_inverted_twice(folder, tmp_path, monkeypatch):
    assert run(folder, "--out", tmp_path / "one").exit_code == 0
    monkeypatch.setattr(own_size.inversion, "invert", lambda *_, **__: pytest.fail("inverted again"))
    assert run(folder, "--out", tmp_path / "two").exit_code == 0
    assert isinstance(run(folder, "--out", tmp_path / "two").exception, StoreError), "a finished run is not redone"


def test_results_never_replace_what_is_not_theirs(folder, tmp_path):
    with pytest.raises(StoreError, match="under the name of a result"):
        own_size.invert_into(own_size.grid([f"folder:{folder}"], generator=GENERATOR), folder, force=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert isinstance(run(folder, "--out", out).exception, StoreError)
    image.write(image.read(folder / "a.png"), folder / "a.jpg")
    with pytest.raises(InvalidValue, match="2 pictures called 'a'"):
        own_size.invert_into(own_size.grid([f"folder:{folder}"], generator=GENERATOR), tmp_path / "new")
    assert not (tmp_path / "new").exists() and [p.name for p in out.iterdir()] == ["mine.txt"]


def test_options_of_the_other_way_are_refused(folder, tmp_path):
    done = run(folder, "--out", tmp_path / "out", "--memory", "4GB")
    assert done.exit_code == 2 and "one picture of any size only" in done.output
    with pytest.raises(LayoutMismatch, match="start for another"):
        runs = own_size.grid([f"folder:{folder}"], generator="anime_inr128", start=f"{GENERATOR}_start")
        own_size.invert_into(runs, tmp_path / "out")
    done = run(folder / "a.png", "--out", tmp_path / "out", "--codes")
    assert done.exit_code == 2 and not (tmp_path / "out").exists()


def test_settings_suit_the_generator():
    (portrait,) = own_size.grid(["portrait:1"], generator=GENERATOR, num_steps=7)
    assert (portrait.loss, portrait.start, portrait.num_steps) == ("vgg_conv", f"{GENERATOR}_start", 7)
    (anime,) = own_size.grid(["portrait:1"], generator="anime_inr128", lr=0.1)
    assert (anime.start, anime.normalise_noise, anime.lr) == (own_size.MEAN, True, 0.1)
    if weights.status("ffhq_mobile1024_synthesis") == "ok":
        (face,) = own_size.grid(["portrait:1"], generator="ffhq_mobile1024", lr=0.2)
        assert (face.loss, face.perceptual, face.noise_start, face.lr) == ("efficientnet_dense", "imagenet", 0.0, 0.2)
        assert not own_size.any_size("ffhq_mobile1024") and own_size.any_size(GENERATOR)


def test_many_pictures_of_a_small_network_take_every_cpu(folder, tmp_path, monkeypatch):
    asked = []

    class Stop(Exception):
        pass

    def swept(*_, workers, **__):
        asked.append(workers)
        raise Stop

    monkeypatch.setattr(own_size, "sweep", swept)
    monkeypatch.setattr(own_size, "cpus", lambda: 3)
    for count, how in ((8, {}), (7, {}), (8, {"workers": 1})):
        runs = own_size.grid([f"portrait:{i}" for i in range(count)], generator=GENERATOR)
        with pytest.raises(Stop):
            own_size.invert_into(runs, tmp_path / f"{count}{len(how)}", **how)
    assert asked == [3, 0, 1]
