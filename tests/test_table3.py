"""The methods of Table III as runs: each is what it says, all are measured alike, a failure costs only itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hrlib import fid, image, lso, optim, retrieval, weights
from hrlib.errors import BatchError, InvalidValue, MissingWeights, UnknownName
from hrlib.experiments import stylisation, table3
from hrlib.nets.dualstylegan import DualStyleGAN
from hrlib.nets.starganv2 import StarGANv2
from hrlib.worlds.pictures import picture

CONTENTS, STYLES = ["portrait:1", "portrait:2"], ["cartoon:1", "cartoon:2", "cartoon:3"]


@pytest.fixture(scope="module")
def prepared(stage_of):
    return stage_of(CONTENTS, STYLES)


@pytest.fixture
def stage(repo, prepared):
    """Inverted once; what is made of it is each test's own."""
    return prepared


@pytest.fixture
def baselines(stage, tmp_path):
    torch.manual_seed(0)
    G = weights.load_generator(stage.source)
    config = {k: v for k, v in G.config.items() if k != "inr_hidden"}
    dual = DualStyleGAN(generator=config)
    widths = dict(style_dim=8, latent_dim=4, max_conv_dim=16, hidden=16, width=8)
    star = StarGANv2(img_size=32, num_domains=2, w_hpf=0, domains=["photo", "cartoon"], **widths)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("dualstylegan", "starganv2")}
    for net, file in ((dual, files["dualstylegan"]), (star, files["starganv2"])):
        weights.save_network(net, file)
    return {name: {"method": name, "stylist": str(file), "domain": "cartoon"} for name, file in files.items()}


def common(stage):
    return table3.Settings(**stage.fixed("cartoon"), references=STYLES, edges=(32,), device="cpu")


def test_every_method_is_what_it_says(stage, baselines):
    fixed = common(stage)
    codes = stage.styles["cartoon"].gallery.ws
    w_s = stage.contents.gallery["portrait:2"]
    make = lambda **changes: table3.stylise(replace(fixed, content="portrait:2").changed(changes))
    dual, star = (weights.load_stylist(baselines[name]["stylist"]) for name in ("dualstylegan", "starganv2"))
    x, references = picture("portrait:2", 32), torch.cat([picture(s, 32) for s in STYLES])
    expected = star.stylise(x.expand_as(references), references, "cartoon").clamp(-1, 1)
    assert torch.equal(make(**baselines["starganv2"]), expected)
    expected = dual.stylise(w_s.expand_as(codes), codes, structure=0.5, colour=1.0).clamp(-1, 1)
    assert torch.equal(make(**baselines["dualstylegan"], structure=0.5), expected)
    mixed = make(num_steps=0)
    for i, style in enumerate(STYLES):
        one = stylisation.Mix(**stage.fixed("cartoon"), content="portrait:2", device="cpu")
        assert torch.allclose(mixed[i : i + 1], stylisation.Mixed(one, [style]).image().clamp(-1, 1), atol=1e-6)
    optimised = make(num_steps=3, lam_reg=1e-3)
    start = stylisation.Mixed(one, [STYLES[1]])
    alone = optim.solve(
        lso.optimise(start.G, start.ws, start.x, start.loss, num_steps=3, lam_reg=1e-3, seed=0, optimise_noise=False)
    )
    moved = (optimised[1:2] - mixed[1:2]).abs().max()
    assert (optimised[1:2] - alone.image.clamp(-1, 1)).abs().max() < 0.01 * moved  # a pair does not depend on its batch


def test_codes_found_in_bfloat16_are_nearly_the_same(stage):
    fixed = replace(common(stage), content="portrait:1", lam_reg=1e-3)
    mixed = table3.stylise(replace(fixed, num_steps=0))
    exact, rough = (table3.stylise(replace(fixed, num_steps=8, bf16=bf16)) for bf16 in (False, True))
    assert exact.dtype == rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert (exact - rough).square().mean() < 0.2 * (exact - mixed).square().mean()


def test_what_ignores_the_content(stage):
    fixed = common(stage)
    samples = [table3.stylise(replace(fixed, method="samples", content=c)) for c in CONTENTS]
    assert samples[0].shape == (3, 3, 32, 32) and not torch.equal(*samples)
    assert torch.equal(samples[0], table3.stylise(replace(fixed, method="samples", content=CONTENTS[0])))
    shown = table3.stylise(replace(fixed, method="pictures", content="anything"))
    assert torch.equal(shown, torch.cat([picture(s, 32) for s in STYLES]))


def test_a_comparison_is_measured_as_its_pictures_show(stage, baselines):
    variants = {"cartoon": {**baselines, "mixed": {"num_steps": 0}}}
    made = table3.compare(CONTENTS, variants, settings=common(stage))
    net = weights.load_identity()
    for name in variants["cartoon"]:
        assert made.people("cartoon", name) == CONTENTS
        x = torch.stack([made.pictures("cartoon", name, c) for c in CONTENTS])  # [people, styles, 3, R, R], from files
        for face in retrieval.FACES:
            expected = retrieval.embed(net, x.flatten(0, 1), face).unflatten(0, (2, 3))
            assert torch.allclose(made.vectors("cartoon", name, face), expected, atol=1e-5)
        expected = fid.features(x.flatten(0, 1), "vgg16_thin", 32).unflatten(0, (2, 3))
        assert torch.allclose(made.vectors("cartoon", name, "fid32"), expected, atol=1e-4)
        assert min(made.seconds("cartoon", name)) > 0
    assert image.to_uint8(made.pictures("cartoon", "mixed", CONTENTS[0])).std() > 1
    by_ones = table3.compare(CONTENTS, variants, settings=replace(common(stage), batch=1))
    for name in variants["cartoon"]:
        one, ten = (m.vectors("cartoon", name, "whole") for m in (by_ones, made))
        assert torch.allclose(one, ten, atol=0.02)  # a level of 8 bits may round the other way
    turns = dict(zip(CONTENTS, STYLES, strict=False))
    each = {"cartoon": {"mixed": lambda content: {"num_steps": 0, "references": [turns[content]]}}}
    taken = table3.compare(CONTENTS, each, settings=common(stage)).vectors("cartoon", "mixed", "whole")
    expected = made.vectors("cartoon", "mixed", "whole")[[0, 1], [0, 1]]
    assert torch.allclose(taken[:, 0], expected, atol=0.02)
    again = table3.compare(CONTENTS, variants, settings=common(stage))
    assert np.array_equal(again.seconds("cartoon", "mixed"), made.seconds("cartoon", "mixed"))  # nothing was made anew


def test_a_failure_is_named_and_left_out(stage, baselines, capsys):
    variants = {"cartoon": {"starganv2": {**baselines["starganv2"], "domain": "cat"}, "mixed": {"num_steps": 0}}}
    made = table3.compare(CONTENTS, variants, settings=common(stage))
    assert made.people("cartoon", "starganv2") == [] and made.people("cartoon", "mixed") == CONTENTS
    assert capsys.readouterr().out.count("failed: cartoon, starganv2, portrait:") == 2


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"metod": "interpolate"}, "method"),
        ({"method": "starganv3"}, "starganv2"),
        ({"references": ["cartoon:9"]}, "cartoon:9"),
    ],
)
def test_misspelt_settings_are_refused_before_anything_runs(stage, changes, name):
    with pytest.raises(UnknownName, match=name):
        table3.grid(CONTENTS, [changes], common(stage))


def test_numbers_out_of_range_are_refused_before_anything_runs(stage):
    for name, bad in {"structure": 1.5, "colour": -1, "batch": 0, "edges": [0], "lr": 0.0}.items():
        with pytest.raises(InvalidValue, match=name.removesuffix("s")):
            table3.grid(CONTENTS, [{name: bad}], common(stage))


def test_a_baseline_that_is_not_here_is_an_error(stage):
    with pytest.raises(MissingWeights, match="dualstylegan_anime_generator"):
        table3.grid(CONTENTS, [{"method": "dualstylegan", "stylist": "dualstylegan_anime_generator"}], common(stage))


# --- measures of a comparison -----------------------------------------------------------------------------------------


def test_retrieval_by_person_is_the_retrieval_of_their_pictures():
    g = torch.Generator().manual_seed(0)
    content = torch.nn.functional.normalize(torch.randn(5, 8, generator=g), dim=1)
    people, names = ["d", "b", "a"], ["a", "b", "c", "d", "e"]
    stylised = content[[3, 1, 0]][:, None] + 0.5 * torch.randn(3, 4, 8, generator=g)  # [people, styles, D]
    found = retrieval.by_person(content, stylised, names, people)
    for k, (person, row) in enumerate(zip(people, (3, 1, 0), strict=True)):
        alone = retrieval.id_retrieval(content, stylised[k], [row] * 4)
        assert found.share[k] == alone.rate and found.rank[k] == alone.rank.mean() and found.people[k] == person
        assert found.confusion()[k].tolist() == np.bincount(alone.nearest, minlength=5).tolist()
    assert found.all.rate == found.share.mean()
    perfect = retrieval.by_person(content, content[[0, 2, 3]][:, None], names, ["a", "c", "d"])
    assert perfect.share.tolist() == [1, 1, 1] and np.array_equal(perfect.confusion().argmax(1), [0, 2, 3])
    assert found.minus(perfect).tolist() == [found.share[0] - 1, found.share[2] - 1]  # d and a, whom both have
    with pytest.raises(UnknownName, match="'f'"):
        retrieval.by_person(content, stylised, names, ["a", "b", "f"])


def test_whom_pictures_follow():
    content, references = torch.eye(4)[:2], torch.eye(4)[2:]  # squared distances of 2
    like_content, like_reference = content[:, None].expand(2, 2, 4), references.expand(2, 2, 4)
    assert retrieval.follows_reference(like_content, references, content).tolist() == [2, 2]
    assert retrieval.follows_reference(like_reference, references, content).tolist() == [-2, -2]


def test_a_jackknife_is_the_distance_and_its_standard_error():
    g = torch.Generator().manual_seed(0)
    stylised, reference = (torch.randn(30, 3, generator=g) for _ in range(2))
    people = [str(i // 3) for i in range(30)]
    found = fid.jackknife(stylised, reference, people)
    assert found.value == fid.frechet_distance(stylised, reference)
    assert np.array_equal(found.by_person, fid.by_person(stylised, reference, people))
    assert found.half == pytest.approx(1.96 * found.by_person.std(ddof=1) / 10**0.5)


def test_what_a_comparison_measures(stage, tmp_path):
    fixed = replace(common(stage), num_steps=0)
    made = table3.compare(CONTENTS, {"cartoon": {"mixed": {}}}, settings=fixed)
    names = [*CONTENTS, "portrait:3"]
    faces = table3.observe(names, settings=fixed, batch=2)
    drawings = table3.observe([f"cartoon:{i}" for i in range(4, 9)], settings=fixed)
    net, vectors = weights.load_identity(), made.vectors("cartoon", "mixed", "whole")
    seen = torch.cat([image.from_uint8(image.to_uint8(picture(name, 32))) for name in names])
    assert torch.allclose(faces.vectors["whole"], retrieval.embed(net, seen), atol=1e-5)
    assert torch.equal(faces.of(["portrait:3", "portrait:1"]), faces.vectors["whole"][[2, 0]])
    found = made.retrieval("cartoon", "mixed", faces)
    direct = retrieval.id_retrieval(faces.vectors["whole"], vectors.flatten(0, 1), [0, 0, 0, 1, 1, 1])
    assert found.all.rate == direct.rate and found.people == tuple(CONTENTS)
    features, real = made.vectors("cartoon", "mixed", "fid32"), drawings.vectors["fid32"]
    assert made.frechet("cartoon", "mixed", drawings, 32).value == fid.frechet_distance(features.flatten(0, 1), real)
    rate, distance = made.point("cartoon", "mixed", faces, drawings, 32, turns={"portrait:1": 2, "portrait:2": 3})
    assert distance == fid.frechet_distance(features[[0, 1], [2, 0]], real)  # the fourth of three is the first
    assert rate == retrieval.id_retrieval(faces.vectors["whole"], vectors[[0, 1], [2, 0]], [0, 1]).rate
    home = made.write("cartoon", "mixed", tmp_path / "out", 32)
    *_, report = retrieval.evaluate(home / "content", home / "stylised", net)
    alone = retrieval.by_person(faces.of(CONTENTS), vectors, CONTENTS, CONTENTS).all
    assert len(report.table) == 6 and report.rates()["top1"] == pytest.approx(alone.rate)


def test_a_picture_that_cannot_be_observed_is_an_error(stage):
    with pytest.raises(BatchError, match="parts of pictures failed"):
        table3.observe(["portrait:1", "file:none.png"], settings=common(stage))
