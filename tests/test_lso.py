"""Eq. (8) and (9): where they start, what may move, what they minimise, and that a pair does not notice its batch."""

from __future__ import annotations

import copy
import inspect
import math
from itertools import islice

import pytest
import torch

from hrlib import directions, inversion, losses, lso, mixing, optim, weights
from hrlib.errors import InvalidValue, NonFiniteLoss, ShapeError, StoreError
from hrlib.nets import StyleINR
from hrlib.nets.stylegan2 import Generator
from hrlib.worlds import portraits

EXACT = {"init_scale": 0.0, "eps_initial": 0.0, "w_samples": 100}
FAST = {"lam_reg": 0.01, "w_samples": 100}


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(3)
    made = StyleINR(z_dim=8, w_dim=8, resolution=16, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2, inr_hidden=8)
    with torch.no_grad():
        for name in made.synthesis.conv_names():
            made.synthesis.get_parameter(f"{name}.noise_strength").fill_(0.3)
    return made.requires_grad_(False)


def pair(n=1, size=(16, 16), seed=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 8, generator=g), torch.rand(n, 3, *size, generator=g) * 1.6 - 0.8


def test_early_layers():
    assert lso.early_layers(18) == [0, 1, 2, 3, 4] == lso.early_layers(12) and lso.early_layers(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("K", [0, 3])
def test_it_starts_at_the_mixed_image(G, noise, K):
    ws, x = pair(2)
    e = directions.closed_form(G)[1][:, :K].float() if K else None
    it = next(lso.optimise(G, ws, x, losses.MSE(), lam_reg=1.0, optimise_noise=noise, directions=e, **EXACT))
    assert torch.equal(it.image, G.synthesis(ws)) and it.terms["reg"] == 0.0


def test_codes_that_were_not_chosen_stay_bit_identical(G):
    ws, x = pair(2)
    before = {k: v.clone() for k, v in G.state_dict().items()}
    kept = ws.clone(), x.clone()
    result = optim.solve(lso.optimise(G, ws, x, losses.MSE(), layers=[3, 1], num_steps=6, **FAST))
    assert torch.equal(result.ws[:, [0, 2, 4, 5]], ws[:, [0, 2, 4, 5]])
    assert (result.ws[:, [1, 3]] != ws[:, [1, 3]]).any(-1).all()
    assert torch.equal(ws, kept[0]) and torch.equal(x, kept[1])
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())
    other = optim.solve(lso.optimise(G, ws, x, losses.MSE(), layers=[1, 3], num_steps=6, **FAST))
    assert torch.equal(other.ws, result.ws)  # the order in which layers are named does not matter
    e = directions.closed_form(G)[1][:, :3].float()
    constrained = optim.solve(lso.optimise(G, ws, x, losses.MSE(), directions=e, num_steps=6, **FAST))
    assert torch.equal(constrained.ws[:, 5], ws[:, 5]) and (constrained.ws[:, :5] != ws[:, :5]).any(-1).all()


BY_HAND = dict(lam_reg=0.3, optimise_noise=False, eps_initial=0.0, init_scale=0.5, seed=4, w_samples=100)


def agrees(G, x, full, free, it, name) -> None:
    """The first iterate against Eq. (8) and (9) at the codes `full`, which depend on the leaf `free`."""
    by_hand = (G.synthesis(full) - x).square().mean() + 0.3 * free.square().sum() / len(x)
    assert it.total == pytest.approx(by_hand.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(by_hand, free)
    m, v = it.state().moments[name]  # Adam's after one step: 0.1 g and 0.001 g^2
    assert torch.allclose(m, 0.1 * gradient, atol=1e-7) and torch.allclose(v, 0.001 * gradient.square(), atol=1e-9)


def test_the_objective_is_equation_8(G):
    ws, x = pair(2)
    it = next(lso.optimise(G, ws, x, losses.MSE(), layers=[0, 1], **BY_HAND))
    start = optim.unit_draw((1, 2, 8), seed=4, step=-1) * 0.5 * inversion.w_statistics(G, samples=100)[1]
    w_opt = start.repeat(2, 1, 1).requires_grad_()
    agrees(G, x, ws + torch.cat([w_opt, torch.zeros(2, 4, 8)], dim=1), w_opt, it, "w_opt")


@pytest.mark.parametrize("shared", [True, False])
def test_the_objective_with_directions_is_equation_9(G, shared):
    ws, x = pair(2)
    e = 2 * directions.closed_form(G)[1][:, :3].float()  # not of unit length: the penalty is on the coefficients
    it = next(lso.optimise(G, ws, x, losses.MSE(), layers=[1, 4], directions=e, shared=shared, **BY_HAND))
    start = optim.unit_draw((1, 1 if shared else 2, 3), seed=4, step=-1) * 0.5
    w = (start * inversion.w_statistics(G, samples=100)[1]).repeat(2, 1, 1).requires_grad_()
    offset = torch.zeros(2, 6, 8)
    offset[:, [1, 4]] = sum(w[:, :, i, None] * e[:, i] for i in range(3))
    agrees(G, x, ws + offset, w, it, "w")


def test_eps_is_added_to_every_code_and_fades(G):
    ws, x = pair(2)
    w_std = inversion.w_statistics(G, samples=100)[1]
    still = dict(lam_reg=0.0, lr=1e-30, init_scale=0.0, optimise_noise=False, w_samples=100)
    for it in lso.optimise(G, ws, x, losses.MSE(), eps_initial=0.5, eps_length=0.5, seed=4, num_steps=4, **still):
        eps = optim.unit_draw((1, 6, 8), seed=4, step=it.step) * w_std * [0.5, 0.125, 0, 0][it.step]
        torch.testing.assert_close(it.image, G.synthesis(ws + eps))
    assert torch.equal(it.image, G.synthesis(ws))


def test_settings_reach_the_loop_and_default_to_the_published_ones(G):
    ws, x = pair()
    ramps = dict(lr=0.2, lr_ramp_up=0.5, lr_ramp_down=0.5, num_steps=4)
    last = optim.last(lso.optimise(G, ws, x, losses.MSE(), **ramps, **FAST))
    assert [row["lr"] for row in last.history] == pytest.approx([0, 0.1, 0.2, 0.1])
    defaults = {name: p.default for name, p in inspect.signature(lso.optimise).parameters.items()}
    projector = dict(lr=0.1, lr_ramp_up=0.05, lr_ramp_down=0.25, eps_initial=0.05, eps_length=0.75, w_samples=10_000)
    published = dict(num_steps=50, shared=True, optimise_noise=True, seed=0) | projector
    assert {name: defaults[name] for name in published} == published


def test_equation_9_stays_in_its_subspace(G):
    ws, x = pair(2)
    e = directions.closed_form(G)[1][:, :3].float()
    for shared in (True, False):
        result = optim.solve(
            lso.optimise(G, ws, x, losses.MSE(), layers=range(6), directions=e, shared=shared, num_steps=5, **FAST)
        )
        offset = result.ws - ws
        assert torch.allclose(offset @ e @ e.T, offset, atol=1e-5) and offset.abs().max() > 1e-3
        assert torch.allclose(offset, offset[:, :1].expand_as(offset), atol=1e-5) == shared


def test_all_directions_with_own_coefficients_are_equation_8(G):
    ws, x = pair()
    options = dict(layers=[0, 1], lam_reg=0.1, optimise_noise=False, **EXACT)
    e = torch.eye(8)
    a = [it.total for it in lso.optimise(G, ws, x, losses.MSE(), num_steps=5, **options)]
    b = [it.total for it in lso.optimise(G, ws, x, losses.MSE(), num_steps=5, directions=e, shared=False, **options)]
    assert a == pytest.approx(b, rel=1e-5)
    e = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]  # Adam's steps see the axes
    its = [
        next(lso.optimise(G, ws, x, losses.MSE(), num_steps=5, **options, **more))
        for more in ({}, {"directions": e, "shared": False})
    ]
    assert its[0].total == its[1].total
    gradients = [it.state().moments[name][0] for it, name in zip(its, ("w_opt", "w"), strict=True)]
    assert torch.allclose(gradients[0] @ e, gradients[1], atol=1e-7) and gradients[1].abs().max() > 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"optimise_noise": False, "layers": [2]}, {"directions": torch.eye(8)[:, :3]}],
    ids=["plain", "codes alone", "directions"],
)
def test_resuming_gives_the_bitwise_same_end(G, tmp_path, options):
    ws, x = pair(2)
    start = lambda **more: lso.optimise(G, ws, x, losses.MSE(), num_steps=9, **FAST, **options, **more)
    whole = optim.last(start())
    for half in islice(start(), 4):
        state = half.state()
    resumed = optim.last(start(resume=optim.State.load(state.save(tmp_path / "state.safetensors"))))
    assert resumed.variables.keys() == whole.variables.keys() and resumed.step == whole.step
    assert all(torch.equal(v, resumed.variables[k]) for k, v in whole.variables.items())
    assert torch.equal(whole.image, resumed.image) and whole.best.total == resumed.best.total


def test_a_state_of_another_run_is_refused(G):
    ws, x = pair()
    other_G = copy.deepcopy(G)
    other_G.synthesis.b4.const += 1
    run = {"G_m": G, "ws_m": ws, "x_s": x, "loss": losses.MSE(), "num_steps": 3, "directions": torch.eye(8), **FAST}
    state = next(lso.optimise(**run)).state()
    next(lso.optimise(**run, resume=state))
    for odd, changes in {
        "lam_reg": {"lam_reg": 0.02},
        "layers": {"layers": [0]},
        "shared": {"shared": False},
        "loss": {"loss": losses.MSE(2.0)},
        "generator": {"G_m": other_G},
    }.items():
        with pytest.raises(StoreError, match=rf"differs in \['{odd}'\]"):
            next(lso.optimise(**{**run, **changes}, resume=state))
    for changes in ({"directions": torch.eye(8).flip(1)}, {"directions": None}, {"ws_m": ws + 1}, {"x_s": -x}):
        with pytest.raises(StoreError, match=r"differs in \['pair'\]"):
            next(lso.optimise(**{**run, **changes}, resume=state))


def test_checkpoint_of_an_interrupted_solve(G, tmp_path):
    (ws, x), path = pair(), tmp_path / "run.safetensors"
    whole = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=20, **FAST))

    def killed(iterates):
        for it in iterates:
            yield it
            if it.step == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=20, **FAST), watch=killed, checkpoint=path, every=5)
    assert optim.State.load(path).step == 10
    seen = []
    watch = lambda its: (seen.append(it.step) or it for it in its)
    resumed = optim.solve(
        lso.optimise(G, ws, x, losses.MSE(), num_steps=20, **FAST), watch=watch, checkpoint=path, every=5
    )
    assert seen == list(range(10, 20))
    assert torch.equal(whole.ws, resumed.ws) and torch.equal(whole.image, resumed.image) and not path.exists()


def test_a_pair_does_not_notice_its_batch(G):
    ws, x = pair(3)
    together = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=8, **FAST))
    for i in range(3):
        alone = optim.solve(lso.optimise(G, ws[i : i + 1], x[i : i + 1], losses.MSE(), num_steps=8, **FAST))
        assert torch.allclose(alone.ws[0], together.ws[i], atol=1e-4)


def test_regularisation_keeps_w_opt_short(G):
    ws, x = pair()
    lengths = []
    for lam_reg in (0.0, 0.01, 1.0):
        options = dict(num_steps=30, optimise_noise=False, lam_reg=lam_reg, w_samples=100)
        lengths.append(float((optim.solve(lso.optimise(G, ws, x, losses.MSE(), **options)).ws - ws).norm()))
    assert lengths[0] > lengths[1] > lengths[2]


def test_noise_maps_start_as_the_generators_and_stay_normalised(G):
    ws, x = pair(2)
    its = list(lso.optimise(G, ws, x, losses.MSE(), num_steps=4, **FAST))
    first, last = (inversion.noise_of(its[i].variables) for i in (0, -1))
    assert list(first) == list(G.noise_maps())
    for name, own in G.noise_maps().items():  # the first step does not move, it only normalises
        own = own - own.mean()
        torch.testing.assert_close(first[name], (own / own.square().mean().sqrt()).expand(2, -1, -1))
        assert (last[name] - first[name]).abs().max() > 1e-3
    for it in its:
        for m in inversion.noise_of(it.variables).values():
            torch.testing.assert_close(m.mean((1, 2)), torch.zeros(2), atol=1e-5, rtol=0)
            torch.testing.assert_close(m.square().mean((1, 2)), torch.ones(2), atol=1e-4, rtol=0)
    still = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=3, optimise_noise=False, **FAST))
    assert still.noise == {} and torch.equal(still.image, G.synthesis(still.ws))


def test_the_result_is_the_last_iterate(G):
    (ws, x), seen = pair(), []
    result = optim.solve(
        lso.optimise(G, ws, x, losses.MSE(), num_steps=6, **FAST), watch=lambda its: (seen.append(i) or i for i in its)
    )
    of = lambda variables: lso.codes(ws, variables, range(5))
    assert torch.equal(result.ws, of(seen[-1].variables)) and not torch.equal(result.ws, of(seen[-1].best.variables))
    noise = inversion.noise_of(seen[-1].variables)
    assert all(torch.equal(m, noise[k]) for k, m in result.noise.items()) and result.best_step == 5


def test_results_say_what_happened_and_survive_the_disk(G, tmp_path):
    ws, x = pair()
    result = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=4, **FAST))
    assert torch.equal(result.image, G.synthesis(result.ws, noise=result.noise)) and result.ended == "all steps done"
    assert len(result.history) == 4 and {"mse", "reg"} <= set(result.history[0]) and result.peak_bytes > 0
    back = inversion.load(result.save(tmp_path / "lso"))
    assert torch.equal(back.ws, result.ws) and torch.equal(back.image, result.image)
    assert back.noise.keys() == result.noise.keys() and all(
        torch.equal(m, back.noise[k]) for k, m in result.noise.items()
    )
    assert (back.config, back.history, back.ended) == (result.config, result.history, result.ended)
    assert back.config["lam_reg"] == 0.01 and back.config["layers"] == [0, 1, 2, 3, 4]
    cut = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=4, **FAST), watch=lambda its: islice(its, 2))
    assert "stopped" in cut.ended and cut.best_step == 1


def test_other_canvases(G):
    ws, x = pair(size=(16, 24))
    assert optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=2, **FAST)).image.shape == (1, 3, 16, 24)


def test_scaled_lam_reg(G):
    ws, x = pair(2)
    w_std = inversion.w_statistics(G, samples=100)[1]
    lam = lso.scaled_lam_reg(G, ws, x, losses.MSE(), share=0.5, w_samples=100)
    assert lam * w_std**2 == pytest.approx(0.5 * float((G.synthesis(ws) - x).square().mean()), rel=1e-6)
    assert lso.scaled_lam_reg(G, ws, x, losses.MSE(), w_samples=100) == pytest.approx(0.4 * lam)  # share is 0.2


@pytest.mark.parametrize("layers", [[], [0, 0], [6], [-1]])
def test_layers_that_are_no_codes(G, layers):
    ws, x = pair()
    with pytest.raises(InvalidValue, match="layers"):
        lso.optimise(G, ws, x, losses.MSE(), layers=layers, **FAST)


def test_bad_input_is_refused_before_the_first_step(G):
    ws, x = pair(2)
    run = lambda ws=ws, x=x, G=G, **more: lso.optimise(G, ws, x, losses.MSE(), **{**FAST, **more})
    for bad, match in (((ws[:1], x), "mixed codes"), ((ws[:, :4], x), "mixed codes"), ((ws, x[:, :1]), "target")):
        with pytest.raises(ShapeError, match=match):
            run(*bad)
    for e in (torch.eye(7), torch.eye(8)[0], torch.eye(8)[:, :0], torch.eye(8)[None]):
        with pytest.raises(ShapeError, match="directions"):
            run(directions=e)
    with pytest.raises(TypeError, match="lam_regg"):
        run(lam_regg=1.0)
    for name, bad in {"num_steps": 0, "lam_reg": -1.0, "lr": 0.0, "init_scale": math.nan, "seed": -1}.items():
        with pytest.raises(InvalidValue, match=name):
            run(**{name: bad})
    for layers in ([1.5], [True]):
        with pytest.raises(InvalidValue, match="layer = "):
            run(layers=layers)
    with pytest.raises(InvalidValue, match="share"):
        lso.scaled_lam_reg(G, ws, x, losses.MSE(), share=-0.2)
    plain = Generator(z_dim=8, w_dim=8, resolution=16, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    with pytest.raises(ShapeError, match="16x16"):
        run(G=plain, x=pair(2, (16, 24))[1])


class Poisoned(losses.MSE):
    def _terms(self, pred, target):
        self.calls = getattr(self, "calls", 0) + 1
        terms = super()._terms(pred, target)
        return {k: v * float("nan") if self.calls > 3 else v for k, v in terms.items()}


def test_a_loss_that_is_not_finite_keeps_the_best(G):
    (ws, x), seen = pair(), []
    with pytest.raises(NonFiniteLoss, match="step 3") as caught:
        for it in lso.optimise(G, ws, x, Poisoned(), num_steps=6, **FAST):
            seen.append(it.total)
    best = caught.value.best
    assert len(seen) == 3 and best.total == min(seen)
    assert best.variables["w_opt"].shape == (1, 5, 8) and all(m.isfinite().all() for m in best.variables.values())


def test_the_shipped_networks():
    """LSO lowers d_h, and leaves the late codes alone."""
    G_s, G_t = weights.load_generator("portraits_inr128"), weights.load_generator("cartoon_inr128")
    lam, loss = mixing.paper_lambdas(128), losses.named("vgg_high", weights="shipped")
    G_m = mixing.lerp_generators(G_s, G_t, lam)
    ws = G_s.mapping(torch.randn(2, G_s.z_dim, generator=torch.Generator().manual_seed(0)))
    w_m = mixing.lerp_ws(ws[:1], ws[1:], lam)
    x = portraits.render(portraits.sample(1, seed=7), 128)
    result = optim.solve(lso.optimise(G_m, w_m, x, loss, lam_reg=1e-4, optimise_noise=False, num_steps=8))
    before, after = (float(loss(image, x)["perceptual"]) for image in (G_m.synthesis(w_m), result.image))
    assert after < 0.9 * before and torch.equal(result.ws[:, 5:], w_m[:, 5:])


@pytest.mark.parametrize("stop", [8, 9])
def test_a_kill_after_the_last_step_loses_nothing(G, tmp_path, stop):
    """The last step would be a checkpoint's, and the file is deleted only when the result is whole."""
    (ws, x), path = pair(), tmp_path / "run.safetensors"
    options = dict(num_steps=10, **FAST)
    whole = optim.solve(lso.optimise(G, ws, x, losses.MSE(), **options))

    def killed(iterates):
        for it in iterates:
            yield it
            if it.step == stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.solve(lso.optimise(G, ws, x, losses.MSE(), **options), watch=killed, checkpoint=path, every=5)
    assert optim.State.load(path).step == 5
    again = optim.solve(lso.optimise(G, ws, x, losses.MSE(), **options), checkpoint=path, every=5)
    assert torch.equal(whole.ws, again.ws) and not path.exists()


def test_the_smallest_pictures_and_maps_without_spread(G):
    ws, x = pair(1, (4, 4))
    result = optim.solve(lso.optimise(G, ws, x, losses.MSE(), num_steps=3, lr=0.3, **FAST))
    assert result.noise["b4.conv1"].shape == (1, 1, 1)
    assert all(m.isfinite().all() for m in (result.image, result.ws, *result.noise.values()))
    flat = copy.deepcopy(G)
    flat.synthesis.b8.conv1.noise_const.zero_()
    with pytest.raises(InvalidValue, match=r"constant noise maps: b8\.conv1"):
        lso.optimise(flat, *pair(), losses.MSE(), **FAST)
