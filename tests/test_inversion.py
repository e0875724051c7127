"""Eq. (1): parity with the published projector, determinism, resuming, failures, saving."""

import inspect
import json
import math
from itertools import islice

import numpy as np
import pytest
import torch
from recorded import FIXTURES, arrays, kept

from hrlib import features, image, inversion, inversion3d, losses, lso, optim, store, weights
from hrlib.errors import DamagedFile, InvalidValue, NonFiniteLoss, ShapeError, StoreError, UnknownName
from hrlib.nets import StyleINR

VARIANTS = {
    "wn_reg": {"noise_regularisation": 1e5},
    "wn_noreg": {},
    "wn_nonorm_mse": {"lam_mse": 0.1, "normalise_noise": False},
    "w_only_mse": {"optimise_noise": False, "lam_mse": 0.1},
}


def rel_rms(a, b):
    a, b = (np.asarray(t, dtype=np.float64) for t in (a, b))
    return np.sqrt(np.mean((a - b) ** 2)) / np.sqrt(np.mean(b**2))


@pytest.fixture(scope="module")
def reference():
    path = FIXTURES / "04_projector" / "project_wplus_io.npz"
    given = {f"in/{k}": v.numpy() for k, v in arrays(path, "in").items()}
    return given | {f"out/{k}": v.numpy() for k, v in arrays(path, "out").items()}


@pytest.fixture(scope="module")
def G64():
    return weights.load_generator(FIXTURES / "01_stylegan2_ada" / "network-snapshot-res64.pkl")


@pytest.fixture(scope="module")
def vgg_loss():
    vgg = features.vgg16(str(FIXTURES / "03_vgg_loss" / "vgg16_div16.safetensors"), tap="conv")
    return losses.Perceptual(vgg, {tap: 100 * lam for tap, lam in losses.HRINVERSION.items()})


@pytest.fixture(scope="module")
def small():
    """A Style-INR-GAN of 16 pixels with random weights, and a loss that works at that size."""
    torch.manual_seed(3)
    G = StyleINR(z_dim=8, w_dim=8, resolution=16, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2, inr_hidden=8)
    with torch.no_grad():
        for name in G.synthesis.conv_names():
            G.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.3)
    return G.requires_grad_(False)


def target_for(size, n=1, seed=5):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def test_statistics_of_w(G64, reference):
    w_avg, w_std = inversion.w_statistics(G64)
    expected = reference["out/w_avg"].reshape(-1)
    assert np.abs(w_avg.numpy() - expected).max() / np.abs(expected).max() < 2e-6
    assert w_std == pytest.approx(float(reference["out/w_std"]), rel=1e-6)


def test_target_is_cropped_and_resized_as_the_reference_does(reference):
    x = image.read(FIXTURES / "04_projector" / "target_96x72.png", 64)
    ours, theirs = (x + 1) * 127.5, reference["out/target"]
    theirs = (theirs + 1) * 127.5 if theirs.min() < 0 else theirs
    assert np.abs(kept(ours, theirs).numpy() - theirs).max() < 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_thirty_steps_of_the_published_projector(variant, G64, vgg_loss, reference):
    expected = {k.split("/", 2)[2]: reference[k] for k in reference if k.startswith(f"out/{variant}/")}
    start = {
        k.removeprefix("in/noise_init/").removesuffix(".noise_const"): torch.from_numpy(reference[k])
        for k in reference
        if k.startswith("in/noise_init/")
    }
    x = image.read(FIXTURES / "04_projector" / "target_96x72.png", 64)
    iterates = list(
        inversion.invert(
            G64,
            x,
            vgg_loss,
            num_steps=30,
            noise_init=start if VARIANTS[variant].get("optimise_noise", True) else None,
            draw=lambda step: torch.from_numpy(reference["in/w_noise_unit"][step]),
            **VARIANTS[variant],
        )
    )
    ws = np.stack([it.variables["ws"][0].numpy() for it in iterates])
    last = iterates[-1]
    assert np.allclose([row["lr"] for row in last.history], expected["step_lr"], rtol=1e-6)
    assert rel_rms(ws[:6], expected["step_w"][:6]) < 3e-4
    assert rel_rms(ws, expected["step_w"]) < 1e-2
    assert rel_rms([row["total"] for row in last.history], expected["step_loss"]) < 3e-3
    noise = inversion.noise_of(last.variables)
    for name, m in noise.items():
        theirs = expected[f"final_noise/{name}.noise_const"]
        assert rel_rms(kept(m[0], theirs), theirs) < 5e-2
    maps = noise or {k: inversion.normalise_(m.clone()) for k, m in G64.noise_maps().items()}
    image_ = G64.synthesis(last.variables["ws"], noise=maps)
    assert rel_rms(kept(image_, expected["final_img"]), expected["final_img"]) < 3e-2


def test_gradients_of_the_first_step(G64, vgg_loss, reference):
    x = image.read(FIXTURES / "04_projector" / "target_96x72.png", 64)
    scale = float(reference["out/wn_noreg/step_w_noise_scale"][0])
    ws = torch.from_numpy(reference["out/w_avg"]).float().reshape(1, 1, -1).repeat(1, G64.num_ws, 1)
    ws = (ws + scale * torch.from_numpy(reference["in/w_noise_unit"][0])).requires_grad_()
    noise = {
        k.removeprefix("in/noise_init/").removesuffix(".noise_const"): torch.from_numpy(reference[k]).requires_grad_()
        for k in reference
        if k.startswith("in/noise_init/")
    }
    sum(vgg_loss(G64.synthesis(ws, noise=noise), x).values()).backward()
    pairs = [(ws.grad, reference["out/wn_noreg/step0_grad_w"])]
    pairs += [(m.grad, reference[f"out/wn_noreg/step0_grad_noise/{k}.noise_const"]) for k, m in noise.items()]
    for ours, theirs in pairs:
        assert np.abs(kept(ours, theirs).numpy() - theirs).max() / np.abs(theirs).max() < 3e-5


def test_schedules():
    assert [optim.lr_ramp(t) for t in (0, 0.025, 0.05, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert optim.lr_ramp(0.875) == pytest.approx(0.5)
    assert optim.exploration_scale(0, w_std=2.0) == pytest.approx(0.1)
    assert optim.exploration_scale(0.375, w_std=2.0) == pytest.approx(0.025)
    assert optim.exploration_scale(0.9, w_std=2.0) == 0


@pytest.mark.parametrize("space", ["w", "w+"])
@pytest.mark.parametrize("noise", [True, False])
def test_the_loss_falls_and_the_run_repeats_bitwise(small, space, noise):
    x = target_for((16, 16))
    run = lambda: optim.solve(
        inversion.invert(small, x, losses.MSE(), num_steps=40, space=space, optimise_noise=noise, seed=4)
    )
    a, b = run(), run()
    assert a.history[-1]["total"] < 0.8 * a.history[0]["total"]
    assert torch.equal(a.ws, b.ws) and torch.equal(a.image, b.image)
    assert a.ws.shape == (1, small.num_ws, 8)
    if space == "w":
        assert torch.equal(a.ws, a.ws[:, :1].expand_as(a.ws))
    assert bool(a.noise) == noise


def test_another_seed_is_another_run(small):
    x = target_for((16, 16))
    a, b = (optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=5, seed=s)) for s in (0, 1))
    assert not torch.equal(a.ws, b.ws)


@pytest.mark.parametrize("options", [{}, {"optimise_noise": False}, {"noise_regularisation": 1.0, "lam_mse": 0.1}])
@pytest.mark.parametrize("stop", [1, 7])
def test_resuming_gives_the_bitwise_same_end(small, tmp_path, options, stop):
    x = target_for((16, 16))
    start = lambda **more: inversion.invert(small, x, losses.MSE(), num_steps=12, seed=2, **options, **more)
    whole = optim.last(start())
    for half in islice(start(), stop):
        state = half.state()
    resumed = optim.last(start(resume=optim.State.load(state.save(tmp_path / "state.safetensors"))))
    assert resumed.step == whole.step
    for name, value in whole.variables.items():
        assert torch.equal(value, resumed.variables[name]), name
    assert resumed.best.total == whole.best.total and resumed.best.step == whole.best.step
    strip = lambda history: [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    assert strip(resumed.history) == strip(whole.history)


def test_a_state_belongs_to_one_configuration(small):
    x = target_for((16, 16))
    it = next(inversion.invert(small, x, losses.MSE(), num_steps=4))
    state = it.state()
    with pytest.raises(StoreError, match="lr"):
        next(inversion.invert(small, x, losses.MSE(), num_steps=4, lr=0.2, resume=state))
    with pytest.raises(StoreError, match="image"):
        next(inversion.invert(small, -x, losses.MSE(), num_steps=4, resume=state))


def test_a_state_must_be_asked_for_in_time(small):
    its = inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=3)
    first = next(its)
    next(its)
    with pytest.raises(StoreError, match="before the next iterate"):
        first.state()


def test_checkpoint_of_an_interrupted_solve(small, tmp_path):
    x, path = target_for((16, 16)), tmp_path / "run.safetensors"
    options, kept = dict(num_steps=20, seed=1), dict(checkpoint=path, every=5)
    whole = optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=20, seed=1))

    def killed(iterates):
        for it in iterates:
            yield it
            if it.step == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.solve(inversion.invert(small, x, losses.MSE(), **options), watch=killed, **kept)
    assert optim.State.load(path).step == 10
    resumed = optim.solve(inversion.invert(small, x, losses.MSE(), **options), **kept)
    assert torch.equal(whole.ws, resumed.ws) and not path.exists()


def test_a_kill_after_the_last_step_loses_nothing(small, tmp_path):
    x, path = target_for((16, 16)), tmp_path / "run.safetensors"
    options = dict(num_steps=10, seed=1)
    whole = optim.solve(inversion.invert(small, x, losses.MSE(), **options))

    def killed(iterates):
        yield from iterates
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.solve(inversion.invert(small, x, losses.MSE(), **options), watch=killed, checkpoint=path, every=5)
    resumed = optim.solve(inversion.invert(small, x, losses.MSE(), **options), checkpoint=path, every=5)
    assert torch.equal(whole.ws, resumed.ws) and not path.exists()


def test_early_stop_and_best_iterate(small):
    x = target_for((16, 16))
    flat = lambda its: optim.until_flat(its, patience=3, min_gain=0.9)
    result = optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=200), watch=flat)
    assert len(result.history) < 200 and "stopped" in result.ended
    with torch.no_grad():
        final = float(losses.MSE()(result.image, x)["mse"])
    assert final <= min(row["total"] for row in result.history) * 1.05


class Poisoned(losses.MSE):
    """Returns NaN under the name "poison" from the third step on."""

    calls = 0

    def _terms(self, pred, target):
        self.calls += 1
        bad = torch.nan if self.calls > 3 else 0.0
        return super()._terms(pred, target) | {"poison": pred.sum() * 0 + bad}


def test_a_non_finite_loss_stops_at_that_step_and_names_the_term(small):
    seen = []
    with pytest.raises(NonFiniteLoss, match=r"at step 3 .*poison = nan") as info:
        for it in inversion.invert(small, target_for((16, 16)), Poisoned(), num_steps=10):
            seen.append(it)
    assert len(seen) == 3 and info.value.step == 3
    assert info.value.best.total == min(it.total for it in seen)
    assert torch.isfinite(info.value.best.variables["ws"]).all()


def test_codes_alone_leave_no_noise_variables_and_the_batch_does_not_mix(small):
    x = target_for((16, 16), n=2)
    both = optim.last(inversion.invert(small, x, losses.MSE(), num_steps=8, eps_initial=0.0))
    alone = optim.last(inversion.invert(small, x[:1], losses.MSE(), num_steps=8, eps_initial=0.0))
    assert both.variables["ws"].shape[0] == 2
    assert torch.allclose(both.variables["ws"][:1], alone.variables["ws"], atol=2e-3)  # Adam's eps sees 1 / N


def test_given_noise_maps_stay_in_the_result_of_a_run_that_does_not_optimise_them(small):
    given = small.noise_maps(seed=8)
    options = dict(num_steps=4, optimise_noise=False, normalise_noise=False)
    result = optim.solve(inversion.invert(small, target_for((16, 16)), losses.MSE(), noise_init=given, **options))
    assert torch.equal(result.image, small.synthesis(result.ws, noise=given))
    assert not torch.equal(result.image, small.synthesis(result.ws))


def test_noise_maps_may_start_from_nothing_if_nothing_scales_them_up(small):
    x = target_for((16, 16))
    starts = dict(num_steps=4, normalise_noise=False)
    first = next(inversion.invert(small, x, losses.MSE(), noise_start=0.0, **starts))
    assert all(bool((m == 0).all()) for m in inversion.noise_of(first.variables).values())  # the first rate is 0
    half, one = (next(inversion.invert(small, x, losses.MSE(), noise_start=s, **starts)).variables for s in (0.5, 1.0))
    assert torch.allclose(2 * half["noise/b16.conv1"], one["noise/b16.conv1"])
    with pytest.raises(InvalidValue, match="normalise_noise=False"):
        inversion.invert(small, x, losses.MSE(), noise_start=0.0)


def test_noise_maps_have_a_rate_of_their_own(small):
    x, moved = target_for((16, 16)), {}
    for gain in (1.0, 3.0):
        how = dict(num_steps=40, noise_gain=gain, normalise_noise=False, noise_start=0.0, eps_initial=0.0)
        steps = inversion.invert(small, x, losses.MSE(), **how)
        moved[gain] = list(islice(steps, 2))[-1].variables  # the first step's rate is 0, and the second one's not
    name = next(k for k in moved[1.0] if k.startswith(inversion.NOISE))
    assert moved[1.0][name].abs().max() > 0
    torch.testing.assert_close(moved[3.0][name], 3 * moved[1.0][name])
    assert torch.equal(moved[3.0]["ws"], moved[1.0]["ws"])


def test_adam_takes_the_betas_that_are_asked_for(small):
    x, ws = target_for((16, 16)), {}
    for beta2 in (0.999, 0.9):
        ws[beta2] = optim.last(inversion.invert(small, x, losses.MSE(), num_steps=6, beta2=beta2)).variables["ws"]
    assert not torch.equal(ws[0.999], ws[0.9])
    leaf = torch.ones(3)
    told = optim.last(  # against torch's own Adam
        optim.descend(
            {"a": leaf}, lambda _, v: ({"l": v["a"].square().sum()}, v["a"]), num_steps=5, betas=(0.5, 0.7),
            lr_schedule=lambda t: 1.0,
        )
    ).variables["a"]  # fmt: skip
    other = leaf.clone().requires_grad_()
    adam = torch.optim.Adam([other], lr=0.1, betas=(0.5, 0.7))
    for _ in range(5):
        adam.zero_grad()
        other.square().sum().backward()
        adam.step()
    assert torch.equal(told, other.detach())


@pytest.mark.parametrize("size", [(24, 40), (17, 33), (16, 50)])
def test_non_square_targets_and_their_noise_maps(small, size):
    result = optim.solve(inversion.invert(small, target_for(size), losses.MSE(), num_steps=3))
    assert result.image.shape[2:] == size
    assert result.noise["b16.conv1"].shape == (1, *size)
    assert result.noise["b8.conv1"].shape == (1, -(-size[0] // 2), -(-size[1] // 2))


def test_result_files(small, tmp_path):
    result = optim.solve(inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=3))
    path = result.save(tmp_path / "result")
    again = inversion.load(path)
    assert torch.equal(again.ws, result.ws) and again.history == result.history and again.config == result.config
    assert all(torch.equal(again.noise[k], result.noise[k]) for k in result.noise)
    assert again.config["generator"] == store.fingerprint(small.state_dict())
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # a flipped bit that safetensors itself does not notice
    path.write_bytes(data)
    with pytest.raises(DamagedFile):
        inversion.load(path)
    path.write_bytes(data[:100])
    with pytest.raises(DamagedFile):
        inversion.load(path)
    with pytest.raises(DamagedFile):
        optim.State.load(path)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 16, 16), ShapeError, "target of shape"),
        (torch.full((1, 3, 16, 16), 200.0), InvalidValue, "200"),
        (torch.full((1, 3, 16, 16), torch.nan), InvalidValue, "nan"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ShapeError, "uint8"),
        (torch.zeros(0, 3, 16, 16), ShapeError, "shape \\(0, 3"),
        (torch.zeros(1, 3, 0, 16), ShapeError, "shape \\(1, 3, 0"),
    ],
)
def test_bad_targets(small, x, error, message):
    with pytest.raises(error, match=message):
        inversion.invert(small, x, losses.MSE(), num_steps=1)


@pytest.mark.parametrize(
    ("run", "settings", "data"),
    [
        (
            inversion.invert,
            {*inversion.RANGES, *inversion.FLAGS, "space"},
            {"G", "x", "loss", "ws_init", "noise_init", "resume", "draw", "moments"},
        ),
        (
            lso.optimise,
            {*lso.RANGES, *lso.FLAGS},
            {"G_m", "ws_m", "x_s", "loss", "layers", "directions", "resume"},
        ),
        (inversion3d.invert, {*inversion3d.RANGES, "space", "starts"}, {"G", "x", "loss", "resume"}),
    ],
)
def test_every_setting_is_checked_and_kept(run, settings, data):
    """A keyword that was forgotten would not count when a run is resumed."""
    assert set(inspect.signature(run).parameters) == settings | data


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"loss": "vgg_conv"}, InvalidValue, "loss = 'vgg_conv'"),
        ({"x": torch.zeros(1, 3, 16, 16, dtype=torch.float64)}, ShapeError, "type torch.float64"),
        ({"optimise_noise": "no"}, InvalidValue, "optimise_noise = 'no'"),
        ({"moments": "disk"}, UnknownName, "moments='disk'"),
        ({"ws_init": torch.zeros(1, 1, 8)}, ShapeError, "ws_init of shape"),
        ({"ws_init": torch.zeros(1, 6, 8), "space": "w"}, ShapeError, "ws_init of shape"),
        ({"ws_init": np.zeros((1, 6, 8))}, ShapeError, "ws_init of type ndarray"),
        ({"ws_init": torch.full((1, 6, 8), math.nan)}, InvalidValue, "ws_init with NaN or infinite"),
        ({"noise_init": {"b4.conv1": torch.zeros(4, 4)}}, ShapeError, "noise_init of"),
        ({"noise_init": []}, ShapeError, "noise_init of list"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_the_first_step(small, wrong, error, match):
    given = {"x": target_for((16, 16)), "loss": losses.MSE()} | wrong
    with pytest.raises(error, match=match):
        inversion.invert(small, **given)


def test_initial_codes_and_maps_belong_to_the_run(small, tmp_path):
    """A checkpoint of other initial values is of another run."""
    x, maps = target_for((16, 16)), small.noise_maps((16, 16), seed=1)
    run = lambda **more: inversion.invert(small, x, losses.MSE(), num_steps=4, w_samples=100, **more)
    ws = small.mapping(torch.ones(1, 8))
    path = next(run(ws_init=ws, noise_init=maps)).state().save(tmp_path / "state.safetensors")
    for more, odd in (({"ws_init": ws + 1, "noise_init": maps}, "codes"), ({"ws_init": ws}, "noise")):
        with pytest.raises(StoreError, match=rf"differs in \['{odd}'\]"):
            optim.solve(run(**more), checkpoint=path)
    assert optim.solve(run(ws_init=ws, noise_init=maps), checkpoint=path).ended == "all steps done"


def test_a_run_that_cannot_begin_keeps_its_state(small, monkeypatch):
    x = target_for((16, 16))
    run = lambda **more: inversion.invert(small, x, losses.MSE(), num_steps=4, w_samples=100, **more)
    resumed = run(resume=next(run()).state())
    with monkeypatch.context() as patch:
        patch.setattr(optim, "descend", lambda *_, **__: exec("raise MemoryError"))
        with pytest.raises(MemoryError):
            next(resumed)
    assert next(resumed).step == 1
    closed = run()
    closed.close()
    assert list(closed) == []


def test_bad_settings(small, G64):
    x = target_for((16, 16))
    with pytest.raises(TypeError, match="num_step"):
        inversion.invert(small, x, losses.MSE(), num_step=1)
    with pytest.raises(UnknownName, match="w\\+"):
        inversion.invert(small, x, losses.MSE(), space="z")
    with pytest.raises(ShapeError, match="Style-INR"):
        inversion.invert(G64, target_for((64, 80)), losses.MSE())


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("num_steps", 0),
        ("num_steps", 1.5),
        ("num_steps", "10"),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lam_mse", -1.0),
        ("noise_regularisation", math.inf),
        ("noise_start", -0.5),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("noise_gain", 0.0),
        ("lr_ramp_up", 0.0),
        ("lr_ramp_down", math.nan),
        ("eps_initial", -1.0),
        ("eps_length", 0.0),
        ("w_samples", 1),
        ("seed", -1),
        ("seed", 99999999999999),
        ("seed", 10**400),
    ],
)
def test_numbers_out_of_range(small, name, bad):
    with pytest.raises(InvalidValue, match=name):
        inversion.invert(small, target_for((16, 16)), losses.MSE(), **{name: bad})


def test_numbers_of_the_loop_and_of_its_consumers(small):
    still = lambda **more: next(
        optim.descend({"a": torch.ones(1)}, lambda _, v: ({"l": v["a"].sum()}, v["a"]), **{"num_steps": 2, **more})
    )
    for name, bad in {"num_steps": 0, "lr": 0.0, "betas": (0.9, 1.0)}.items():
        with pytest.raises(InvalidValue, match=name.replace("betas", "beta2")):
            still(**{name: bad})
    for bad in ({"patience": 0}, {"min_gain": math.nan}):
        with pytest.raises(InvalidValue, match=next(iter(bad))):
            next(optim.until_flat(iter(()), **bad))
    with pytest.raises(InvalidValue, match="every"):
        optim.solve(inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=1), every=0)


def test_numbers_of_any_kind_are_taken_and_kept_plain(small, tmp_path):
    x, odd = target_for((16, 16)), dict(num_steps=2.0, seed=np.int64(3), lr=np.float32(0.5), lam_mse=torch.tensor(1.0))
    result = optim.solve(inversion.invert(small, x, losses.MSE(), **odd))
    plain = optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=2, seed=3, lr=0.5, lam_mse=1.0))
    assert torch.equal(result.ws, plain.ws) and json.loads(json.dumps(result.config)) == plain.config
    assert result.save(tmp_path / "odd").exists()


# --- the smallest pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (4, 16)])
def test_a_noise_map_of_one_pixel_is_optimised_as_it_is(small, size):
    """At the least size the coarsest map is 1x1, whose spread is 0: to normalise it would be 0 / 0."""
    options = dict(num_steps=4, lr=0.3, noise_regularisation=1.0, seed=2)
    result = optim.solve(inversion.invert(small, target_for(size), losses.MSE(), **options))
    assert result.image.isfinite().all() and all(m.isfinite().all() for m in result.noise.values())
    assert result.noise["b4.conv1"].shape == (1, 1, size[1] // 4)
    for m in result.noise.values():
        if m.shape[-2:] != (1, 1):
            assert m.square().mean().item() == pytest.approx(1, abs=1e-4)
    one = torch.full((2, 1, 1), 0.7)
    assert torch.equal(inversion.normalise_(one.clone()), one)


def test_maps_that_cannot_be_normalised_are_refused_before_the_first_step(small):
    x, maps = target_for((16, 16)), small.noise_maps(seed=8)
    flat = maps | {"b8.conv1": torch.full((8, 8), 0.3)}
    for more in ({}, {"optimise_noise": False}):
        with pytest.raises(InvalidValue, match=r"constant noise maps: b8\.conv1"):
            inversion.invert(small, x, losses.MSE(), noise_init=flat, **more)
    assert optim.last(inversion.invert(small, x, losses.MSE(), noise_init=flat, normalise_noise=False, num_steps=2))


# --- where results and checkpoints go ---------------------------------------------------------------------------------


def test_results_with_dots_in_their_names_are_two_and_none_is_replaced_unasked(small, tmp_path):
    x = target_for((16, 16))
    results = {lr: optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=2, lr=lr)) for lr in (0.1, 0.2)}
    files = [result.save(tmp_path / f"lr_{lr}") for lr, result in results.items()]
    assert [f.name for f in files] == ["lr_0.1.safetensors", "lr_0.2.safetensors"]
    for lr, result in results.items():  # by the name they were saved under, and by that of the file
        for name in (f"lr_{lr}", f"lr_{lr}.safetensors"):
            assert torch.equal(inversion.load(tmp_path / name).image, result.image)
    before = files[0].read_bytes()
    with pytest.raises(StoreError, match="there already"):
        results[0.2].save(tmp_path / "lr_0.1")
    assert files[0].read_bytes() == before
    results[0.2].save(tmp_path / "lr_0.1", force=True)
    assert inversion.load(tmp_path / "lr_0.1").config["lr"] == 0.2
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(StoreError, match=r"mine\.json is there already"):
        results[0.1].save(tmp_path / "mine")
    assert (tmp_path / "mine.json").read_text() == "mine" and not (tmp_path / "mine.safetensors").exists()
    with pytest.raises(StoreError, match="no file"):
        inversion.load(tmp_path / "nothing")


def refused(small, path, kind, match, **more):
    """`solve` with a checkpoint at `path` ends with an error before its first step."""
    seen = []
    watch = lambda its: (seen.append(it) or it for it in its)
    run = inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=4, **more)
    with pytest.raises(kind, match=match):
        optim.solve(run, checkpoint=path, every=1, watch=watch)
    assert not seen


def test_a_checkpoint_that_is_not_this_runs_is_refused_and_stays(small, tmp_path):
    letter = tmp_path / "letter.safetensors"
    letter.write_text("dear")
    refused(small, letter, DamagedFile, "is not a saved state")
    assert letter.read_text() == "dear"
    state = next(inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=4)).state()
    path = state.save(tmp_path / "run.safetensors")
    before = path.read_bytes()
    refused(small, path, StoreError, r"differs in \['lr'\]", lr=0.3)
    with pytest.raises(StoreError, match="there already"):
        state.save(path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="cannot be read"):
        optim.State.load(tmp_path)


def test_where_a_checkpoint_goes_is_tried_before_the_steps(small, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(small, tmp_path / "file" / "run.safetensors", StoreError, "cannot be written")
    refused(small, tmp_path, StoreError, "is a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_is_used_once_and_shows_its_settings(small, tmp_path):
    x, path = target_for((16, 16)), tmp_path / "run.safetensors"
    run = inversion.invert(small, x, losses.MSE(), num_steps=4, lr=0.2)
    assert repr(run).startswith("Run: 0 of 4 steps done\n") and "\n  lr = 0.2\n" in repr(run)
    assert "\n  loss = 'MSE(weight=1.0)'" in repr(run)
    next(run).state().save(path)
    assert [it.step for it in islice(run, 1)] == [1] and "2 of 4" in repr(run)
    with pytest.raises(StoreError, match="a run with 2 steps done"):
        optim.solve(run, checkpoint=path)
    whole = optim.solve(run)  # goes on
    assert len(whole.history) == 4 and "4 of 4" in repr(run)
    assert torch.equal(whole.ws, optim.solve(inversion.invert(small, x, losses.MSE(), num_steps=4, lr=0.2)).ws)
    assert list(run) == []
    for again in (optim.last, optim.solve):
        with pytest.raises(StoreError, match="set up a new run"):
            again(run)


def test_two_runs_never_share_a_checkpoint(small, tmp_path):
    path = tmp_path / "run.safetensors"

    def another(iterates):
        yield next(iterates)
        refused(small, path, StoreError, "another run with the checkpoint")
        yield from iterates

    run = inversion.invert(small, target_for((16, 16)), losses.MSE(), num_steps=3)
    assert optim.solve(run, watch=another, checkpoint=path, every=1).best_step >= 0
    assert not path.exists()
