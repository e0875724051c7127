"""Syntheses as runs of a sweep: what they are made of, what is measured, what is refused, what a failure costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hrlib import gallery, lso, metrics, mixing, optim, weights
from hrlib.errors import HRLibError, InvalidValue, LayoutMismatch, UnknownName
from hrlib.experiments import stylisation, syntheses
from hrlib.worlds import portraits
from hrlib.worlds.pictures import drawn, listed, picture

JUDGES = {"identity": "identity_thin", "lpips": "lpips_thin", "style": "style_thin"}
COLUMNS = syntheses.measures(JUDGES)
NONE = {"num_steps": 0}


@pytest.fixture(scope="module")
def prepared(stage_of):
    return stage_of(["portrait:1..2"], ["cartoon:1..2"])


@pytest.fixture
def stage(repo, prepared):
    """Inverted once; what is made of it is each test's own."""
    return prepared


def one(stage, **changes):
    (run,) = stylisation.grid(stage.pairs("cartoon", 1), [changes], fixed(stage))
    return run


def fixed(stage, **changes):
    return stylisation.Settings(**{**stage.fixed("cartoon"), **changes})


def start_of(run):
    return stylisation.Mixed(run, [run.style])


def test_measures_follow_their_judges():
    assert COLUMNS["identity_distance"] == "content:identity_thin" and COLUMNS["style_to_mixed"] == "mixed:style_thin"
    assert "identity_distance" not in syntheses.measures({**JUDGES, "identity": ""})


def test_methods_are_what_they_say(stage):
    G_s, G_t = (weights.load_generator(stage.source), weights.load_generator(stage.generators["cartoon"]))
    w_s, w_t = stage.contents.gallery["portrait:1"], stage.styles["cartoon"].gallery["cartoon:1"]
    swap = mixing.swap_lambdas(32, "b16")
    expected = {
        "swap_layers": (swap, w_s),
        "swap_codes": (swap, mixing.lerp_ws(w_s, w_t, swap)),
        "blend_layers": (mixing.logistic_lambdas(32, "b16"), w_s),
        "interpolate": (mixing.paper_lambdas(32), mixing.lerp_ws(w_s, w_t, mixing.paper_lambdas(32))),
    }
    assert set(expected) == set(stylisation.METHODS)
    for method, (lam, ws) in expected.items():
        start = start_of(one(stage, method=method, from_block="b16"))
        assert torch.equal(start.ws, ws)
        assert torch.equal(start.image(), mixing.lerp_generators(G_s, G_t, lam).synthesis(ws))


def test_columns_measure_what_they_say(stage):
    settings = one(stage, num_steps=4, lam_reg=1e-4, columns=[*COLUMNS.values()])
    found = stylisation.perform(settings)
    values = dict(found.values)
    assert list(values) == settings.columns and set(found.files) == {"image.png"}
    start = start_of(settings)
    mixed = stylisation.perform(replace(settings, num_steps=0)).values
    assert mixed["mixed:style_thin"] == 0 == mixed["background"] and values["background"] > 0
    assert mixed["loss"] == pytest.approx(
        float(start.loss(start.image().clamp(-1, 1), start.x)["perceptual"]), rel=1e-5
    )
    result = optim.solve(
        lso.optimise(start.G, start.ws, start.x, start.loss, num_steps=4, lam_reg=1e-4, optimise_noise=False)
    )
    lpips = metrics.lpips(result.image.clamp(-1, 1), picture("portrait:1", 32))[0]
    assert values["content:lpips_thin"] == pytest.approx(lpips, rel=1e-4)
    assert 0 < values["pose_error"] < 180


def test_background_is_where_neither_head_is():
    outside = stylisation.background("portrait:1", "cartoon:2", 64)[0, 0].bool()
    for name, domain in (("portrait:1", "photo"), ("cartoon:2", "cartoon")):
        truth = portraits.render_with_truth(drawn(name), 64, domain=domain)
        assert not outside[truth.head_mask[0, 0] > 0.5].any()
    assert 0.1 < outside.float().mean() < 0.7
    assert stylisation.background("photo:astronaut", "cartoon:2", 64) is None
    assert stylisation.pose_error(torch.zeros(1, 3, 32, 32), "photo:astronaut") is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lam": 1.0}, "setting 'lam'"),
        ({"method": "interpolat"}, "did you mean 'interpolate'"),
        ({"columns": ["content:lpip"]}, "metric 'lpip'"),
        ({"columns": ["contents:colour"]}, "column 'contents:colour'"),
        ({"columns": ["pose"]}, "column 'pose'"),
        ({"layers": "late"}, "layers 'late'"),
        ({"layers": [99]}, "layers"),
        ({"loss": "vgg_hig"}, "did you mean 'vgg_high'"),
        ({"from_block": "b512", "method": "swap_layers"}, "block 'b512'"),
        ({"low": 1.5}, "lambdas"),
    ],
)
def test_misspelt_settings_are_refused_before_anything_runs(stage, changes, match):
    with pytest.raises(HRLibError, match=match):
        one(stage, **changes)


def test_pictures_and_galleries_that_do_not_fit(stage, tiny):
    with pytest.raises(UnknownName, match="no picture 'portrait:9'"):
        stylisation.grid([("portrait:9", "cartoon:1")], [NONE], fixed(stage))
    with pytest.raises(LayoutMismatch, match="another generator"):
        stylisation.grid(stage.pairs("cartoon"), [NONE], fixed(stage, target=tiny(4)))
    large = tiny(5, resolution=64, channels={4: 8, 8: 8, 16: 8, 32: 8, 64: 8})
    with pytest.raises(LayoutMismatch, match="resolution 32 and 64"):
        stylisation.grid(stage.pairs("cartoon"), [NONE], fixed(stage, target=large))


def test_a_sweep_of_variants(stage):
    variants = {"mixed": NONE, "same": NONE, "lso": {"num_steps": 6, "lam_reg": 0.0}}
    made = syntheses.synthesise(stage, variants, COLUMNS)
    assert len(made.table) == 6 and not made.table["error"].any()
    assert made.values("loss", "mixed").index.names == ["domain", "content", "style"]
    assert (made.difference("loss", "lso", "mixed") < 0).all() and (
        made.difference("lpips", "same", "mixed") == 0
    ).all()
    assert made.values("no_such_measure", "lso").empty
    image = made.image("cartoon", "lso", "portrait:2", "cartoon:2")
    assert torch.equal(image, made.images("lso")[1:]) and len(made.seconds("lso")) == 2


def test_one_bad_code_does_not_stop_the_others(stage, tmp_path):
    built = stage.styles["cartoon"]
    ws = built.gallery.ws.clone()
    ws[0] = np.nan
    bad = gallery.Gallery(built.gallery.names, ws, built.gallery.generator).save(tmp_path / "bad.safetensors")
    stage = replace(stage, styles={"cartoon": replace(built, path=bad)})
    made = syntheses.synthesise(stage, {"lso": {"num_steps": 2}}, COLUMNS)
    assert made.table["error"].str.contains("InvalidValue: mixed codes with NaN").tolist() == [True, False]
    assert made.image("cartoon", "lso", "portrait:1", "cartoon:1") is None and len(made.values("lpips", "lso")) == 1


def test_lam_reg_is_the_mean_share_of_the_pairs(stage):
    starts = [start_of(run) for run in stylisation.grid(stage.pairs("cartoon"), [NONE], fixed(stage))]
    each = [lso.scaled_lam_reg(s.G, s.ws, s.x, s.loss, share=0.3) for s in starts]
    assert stage.lam_reg(0.3) == pytest.approx(np.mean(each), rel=0.06)  # two digits


def test_estimates(stage):
    assert 0 < stylisation.estimate(one(stage, num_steps=50)) < 60 and stylisation.estimate(one(stage, **NONE)) < 5


def test_names_of_drawn_pictures():
    assert listed(["anime:3..5", "portrait:2"]) == ["anime:3", "anime:4", "anime:5", "portrait:2"]
    assert torch.equal(picture("cartoon:7", 32), portraits.render(portraits.sample(1, seed=7), 32, domain="cartoon"))
    assert drawn("file:7") is None and len(drawn("caricature:7")) == 1


def test_numbers_out_of_range_are_refused_before_anything_runs(stage):
    bad = {"num_steps": -1, "directions": 9, "lam_reg": -1.0, "lr": 0.0, "seed": 2**40}
    for name, value in bad.items():
        with pytest.raises(InvalidValue, match=name):
            stylisation.grid(stage.pairs("cartoon"), [{name: value}], fixed(stage))
    (run, *_) = stylisation.grid(stage.pairs("cartoon"), [{"num_steps": np.int64(3)}], fixed(stage))
    assert type(run.num_steps) is int


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("portrait:99999999999999999999", "seed"),
        (f"scene:{'9' * 5000}", "seed"),
        ("portrait:9..3", "range"),
        ("scene:1..4294967296", "seed"),
    ],
)
def test_seeds_and_ranges_that_make_no_sense(name, match):
    with pytest.raises(InvalidValue, match=match):
        for one in listed([name]):
            picture(one, 32)


def test_names_that_only_look_like_seeds():
    for name in ("portrait:²", "scene:³", "portrait:-3"):
        with pytest.raises(UnknownName, match="picture"):
            picture(name, 32)
    for size in (0, -4, (32, 0), 2.5):
        with pytest.raises(InvalidValue, match="size"):
            picture("portrait:1", size)
    assert torch.equal(picture("portrait:007", 32), picture("portrait:7", 32))
