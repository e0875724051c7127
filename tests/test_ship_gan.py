"""From a training folder to weights, log, facts and cards: what a card says was done, or measured, and nothing else."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from hrlib import weights
from hrlib.errors import StoreError, UnknownName
from hrlib.store import read_json
from hrlib.training import gan, gan_cards, gan_measures, loop, picture_sets, ship_gan, shipped_gans, shipping
from hrlib.training.recipe import GanRecipe
from hrlib.weights import files

TINY = GanRecipe(
    resolution=16,
    z_dim=64,
    w_dim=8,
    channels={4: 8, 8: 8, 16: 8},
    mapping_layers=2,
    inr_hidden=8,
    batch=4,
    warm_images=4,
    total_images=12,
    anchor=0.5,
    mirror=False,
    ada_target=0.0,
    fresh_prob=0.25,
    r1_gamma=0.75,
)
NAMES = {"portraits_inr128": "portraits/photo", "cartoon_inr128": "portraits/cartoon"}
TABLE = pd.DataFrame({"pictures": ["generator"], "frechet": [12.3456], "precision": [0.6789], "recall": [0.5432]})


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A data folder of its own, with a trained pair of the photo domain and one of the cartoon domain shipped to it."""
    out = tmp_path / "data" / "weights"
    out.mkdir(parents=True)
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    for _ in picture_sets.render_set(tmp_path / "set", 8, resolution=16, z_dim=64):
        pass
    for name, place in NAMES.items():
        source = None if name == "portraits_inr128" else "portraits_inr128"
        recipe = GanRecipe(**TINY.summary() | {"source": source, "train_mapping": source is None})
        monkeypatch.setitem(shipped_gans.GANS, name, shipped_gans.ShippedGan(place, 16_000, 6_000, recipe))
        gan.run(recipe, picture_sets.load_set(tmp_path / "set"), tmp_path / name, tell=lambda _: None)
        ship_gan.ship(tmp_path / name, name=name, out=out)
    return tmp_path, out


def card(out, name):
    return " ".join((out / f"{name}.md").read_text().split())


def test_what_is_shipped_is_what_was_trained(world):
    folder, out = world
    state = gan.finished(loop.trained(folder / "portraits_inr128"))
    G, D = weights.load_generator("portraits_inr128"), weights.load_discriminator("portraits_inr128_discriminator")
    for net, own in ((G, state.G_ema), (D, state.D)):
        for key, value in own.state_dict().items():
            torch.testing.assert_close(net.state_dict()[key], value, atol=1e-4, rtol=1e-3)
    assert (out / "portraits_inr128.log.csv").read_bytes() == (folder / "portraits_inr128" / loop.LOG).read_bytes()
    facts = read_json(out / "portraits_inr128.json")
    assert facts["images"] == 12 and facts["half"] and facts["half_psnr"] > ship_gan.HALF_DB
    assert (out / "portraits_inr128.safetensors").stat().st_size < 2.5 * facts["parameters"]["G"] + 20_000


def test_cards_say_what_was_done(world):
    _, out = world
    source, cartoon = card(out, "portraits_inr128"), card(out, "cartoon_inr128")
    for text in (source, cartoon, card(out, "cartoon_inr128_discriminator")):
        assert "6,000 rendered portraits" in text and "the first 6,000 of 16,000" in text
        assert "12, of which 4 in the warm start" in text and "bfloat16" in text and "thread" in text
    assert "R1 (gamma 0.75) every 16 steps" in source and "weight 0.5" in source and "25% of these steps" in source
    assert "not a GAN trained from scratch" in source and "Fine-tuned" not in source
    assert "photo domain" in source and "cartoon domain" in cartoon
    assert "`hrlab train network cartoon_inr128 --force`" in cartoon
    assert "Fine-tuned from `portraits_inr128` and its discriminator" in cartoon and "a w means the same" in cartoon
    assert "Not yet measured of these weights: ladder." in source
    assert "Not yet measured of these weights: ladder, layout." in cartoon


def test_measures_enter_the_cards_and_are_forgotten_with_the_weights(world, monkeypatch):
    folder, out = world
    monkeypatch.setattr(gan_measures, "ladder", lambda G, world, *, n, other: TABLE)
    columns = {"correlation": 0.91, "low": 0.88, "high": 0.93, "renders": 0.97, "r2_source": 0.95, "r2_target": 0.94}
    monkeypatch.setattr(gan_measures, "renders", lambda world, n, **_: world)
    monkeypatch.setattr(
        gan_measures,
        "pose_correlation",
        lambda G, H, source, target, *, n: pd.DataFrame([{"parameter": f"yaw in {source} and {target}"} | columns]),
    )
    found = dict(ship_gan.measures("cartoon_inr128", n=77, out=out))
    assert list(found) == ["ladder", "layout"] and found["ladder"] is TABLE
    text = card(out, "cartoon_inr128")
    assert "77 unseen renders" in text and "| generator | 12.35 | 0.679 | 0.543 |" in text
    assert "| yaw in portraits/photo and portraits/cartoon | 0.91 (0.88 to 0.93) | 0.97 | 0.95 | 0.94 |" in text
    assert "Not yet measured" not in text
    assert dict(ship_gan.measures("portraits_inr128", n=77, out=out)).keys() == {"ladder"}
    value = dict(n=32, gallery=100, psnr_mean=25.5, psnr_std=1.5, psnr_min=21.0, same_photo=1.0, other_view=0.96875)
    ship_gan.record("portraits_inr128", "inversion", value | {"settings": "300 steps"}, out=out)
    assert "PSNR 25.50 dB" in card(out, "portraits_inr128") and "97% when" in card(out, "portraits_inr128")
    ship_gan.ship(folder / "cartoon_inr128", name="cartoon_inr128", out=out, force=True)
    assert "Not yet measured of these weights: ladder, layout." in card(out, "cartoon_inr128")


def test_a_history_and_no_path_of_this_machine(world, monkeypatch):
    folder, out = world
    for suffix in ("", "_discriminator"):
        (folder / f"earlier{suffix}.safetensors").write_bytes(
            (out / f"cartoon_inr128{suffix}.safetensors").read_bytes()
        )
    recipe = GanRecipe(**TINY.summary() | {"source": str(folder / "earlier.safetensors")})
    gan.run(recipe, picture_sets.load_set(folder / "set"), folder / "again", tell=lambda _: None)
    (folder / "again" / "history.md").write_text("- **Its past:** a story.\n")
    ship_gan.ship(folder / "again", name="cartoon_inr128", out=out, force=True)
    text = card(out, "cartoon_inr128")
    assert "- **Its past:** a story." in text and "earlier state of generator and discriminator (`earlier." in text
    assert str(folder) not in (out / "cartoon_inr128.json").read_text() + text


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_pair_in_a_folder_of_ones_own_is_whole_and_touches_nothing_else(world, monkeypatch):
    folder, out = world
    before, own = contents(out), folder / "own"
    ship_gan.ship(folder / "cartoon_inr128", name="cartoon_inr128", out=own)
    endings = (".safetensors", ".md", ".json", ".log.csv", "_discriminator.safetensors", "_discriminator.md")
    assert {f.name for f in own.iterdir()} == {f"cartoon_inr128{ending}" for ending in endings}
    monkeypatch.setattr(gan_measures, "ladder", lambda G, world, *, n, other: TABLE)
    monkeypatch.setattr(gan_measures, "renders", lambda world, n, **_: world)
    columns = {"correlation": 0.9, "low": 0.8, "high": 1.0, "renders": 1.0, "r2_source": 1.0, "r2_target": 1.0}
    rows = pd.DataFrame([{"parameter": "yaw"} | columns])
    monkeypatch.setattr(gan_measures, "pose_correlation", lambda G, H, source, target, *, n: rows)
    assert list(dict(ship_gan.measures("cartoon_inr128", n=77, out=own))) == ["ladder", "layout"]
    assert "77 unseen renders" in card(own, "cartoon_inr128") and contents(out) == before


def test_nothing_that_is_shipped_is_replaced_unless_forced(world):
    folder, out = world
    before = contents(out)
    with pytest.raises(StoreError, match=r"cartoon_inr128.safetensors is there already"):
        ship_gan.ship(folder / "cartoon_inr128", name="cartoon_inr128", out=out)
    (folder / "own").mkdir()
    (folder / "own" / "cartoon_inr128_discriminator.md").write_text("precious")
    with pytest.raises(StoreError, match=r"cartoon_inr128_discriminator.md is there already"):
        ship_gan.ship(folder / "cartoon_inr128", name="cartoon_inr128", out=folder / "own")
    assert contents(out) == before and len(contents(folder / "own")) == 1


def test_refusals(world):
    _, out = world
    with pytest.raises(UnknownName, match="cartoon_inr128"):
        ship_gan.ship(out, name="cartoon_inr12", out=out)
    with pytest.raises(UnknownName, match="another portrait domain"):
        ship_gan.layout("portraits_inr128", out=out)
    with pytest.raises(UnknownName, match="ladder"):
        ship_gan.record("portraits_inr128", "ladders", {}, out=out)
    with pytest.raises(StoreError, match="hrlab train ship anime_inr128"):
        ship_gan.ladder("anime_inr128", n=4, out=out)


@pytest.mark.parametrize("name", list(shipped_gans.GANS))
def test_the_shipped_cards_are_what_their_facts_say(name):
    folder = shipping.shipped()
    facts = read_json(folder / f"{name}.json")
    for key, text in ((name, gan_cards.generator), (f"{name}_discriminator", gan_cards.discriminator)):
        assert (folder / f"{key}.md").read_text() == text(name, facts).strip() + "\n"
