"""Eq. (8) and (9): where they start, what may move, what they minimise, and that a pair does not notice its batch."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from hrlib import descent, directions, inversion, losses, lso, mixing, weights
from hrlib.errors import NonFiniteLoss, ShapeError, StoreError, UnknownName
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
    result = lso.solve(G, ws, x, losses.MSE(), layers=[3, 1], num_steps=6, **FAST)
    assert torch.equal(result.ws[:, [0, 2, 4, 5]], ws[:, [0, 2, 4, 5]])
    assert (result.ws[:, [1, 3]] != ws[:, [1, 3]]).any(-1).all()
    assert torch.equal(ws, kept[0]) and torch.equal(x, kept[1])
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())


def test_the_objective_is_equation_8(G):
    ws, x = pair(2)
    options = dict(layers=[0, 1], lam_reg=0.3, optimise_noise=False, eps_initial=0.0, w_samples=100, init_scale=0.5)
    it = next(lso.optimise(G, ws, x, losses.MSE(), **options))
    start = descent.unit_draw((1, 2, 8), seed=0, step=-1) * 0.5 * inversion.w_statistics(G, samples=100)[1]
    w_opt = start.repeat(2, 1, 1).requires_grad_()
    full = ws + torch.cat([w_opt, torch.zeros(2, 4, 8)], dim=1)
    by_hand = (G.synthesis(full) - x).square().mean() + 0.3 * w_opt.square().sum() / 2
    assert it.total == pytest.approx(by_hand.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(by_hand, w_opt)
    m, v = it.state().moments["w_opt"]  # Adam's after one step: 0.1 g and 0.001 g^2
    assert torch.allclose(m, 0.1 * gradient, atol=1e-7) and torch.allclose(v, 0.001 * gradient.square(), atol=1e-9)


def test_equation_9_stays_in_its_subspace(G):
    ws, x = pair(2)
    e = directions.closed_form(G)[1][:, :3].float()
    for shared in (True, False):
        result = lso.solve(G, ws, x, losses.MSE(), layers=range(6), directions=e, shared=shared, num_steps=5, **FAST)
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


@pytest.mark.parametrize("options", [{}, {"optimise_noise": False, "layers": [2]}])
def test_resuming_gives_the_bitwise_same_end(G, tmp_path, options):
    ws, x = pair(2)
    start = lambda **more: lso.optimise(G, ws, x, losses.MSE(), num_steps=9, **FAST, **options, **more)
    whole = descent.last(start())
    for half in islice(start(), 4):
        state = half.state()
    resumed = descent.last(start(resume=descent.State.load(state.save(tmp_path / "state.safetensors"))))
    assert all(torch.equal(v, resumed.variables[k]) for k, v in whole.variables.items())
    for other in ({"lam_reg": 0.02}, {"layers": [0]}, {"directions": torch.eye(8)}):
        changed = {**FAST, **options, **other, "resume": state}
        with pytest.raises(StoreError, match="differs"):
            next(lso.optimise(G, ws, x, losses.MSE(), num_steps=9, **changed))


def test_checkpoint_of_an_interrupted_solve(G, tmp_path):
    (ws, x), path = pair(), tmp_path / "run.safetensors"
    whole = lso.solve(G, ws, x, losses.MSE(), num_steps=20, **FAST)

    def killed(iterates):
        for it in iterates:
            yield it
            if it.step == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lso.solve(G, ws, x, losses.MSE(), num_steps=20, watch=killed, checkpoint=path, every=5, **FAST)
    assert descent.State.load(path).step == 10
    resumed = lso.solve(G, ws, x, losses.MSE(), num_steps=20, checkpoint=path, every=5, **FAST)
    assert torch.equal(whole.ws, resumed.ws) and not path.exists()


def test_a_pair_does_not_notice_its_batch(G):
    ws, x = pair(3)
    together = lso.solve(G, ws, x, losses.MSE(), num_steps=8, **FAST)
    for i in range(3):
        alone = lso.solve(G, ws[i : i + 1], x[i : i + 1], losses.MSE(), num_steps=8, **FAST)
        assert torch.allclose(alone.ws[0], together.ws[i], atol=1e-4)


def test_regularisation_keeps_w_opt_short(G):
    ws, x = pair()
    lengths = []
    for lam_reg in (0.0, 0.01, 1.0):
        options = dict(num_steps=30, optimise_noise=False, lam_reg=lam_reg, w_samples=100)
        lengths.append(float((lso.solve(G, ws, x, losses.MSE(), **options).ws - ws).norm()))
    assert lengths[0] > lengths[1] > lengths[2]


def test_noise_maps_start_as_the_generators_and_stay_normalised(G):
    ws, x = pair()
    it = descent.last(lso.optimise(G, ws, x, losses.MSE(), num_steps=3, **FAST))
    maps = inversion.noise_of(it.variables)
    assert set(maps) == set(G.noise_maps())
    for m in maps.values():
        assert abs(float(m.mean())) < 1e-5 and float(m.square().mean()) == pytest.approx(1, abs=1e-4)
    still = lso.solve(G, ws, x, losses.MSE(), num_steps=3, optimise_noise=False, **FAST)
    assert still.noise == {} and torch.equal(still.image, G.synthesis(still.ws))


def test_results_say_what_happened_and_survive_the_disk(G, tmp_path):
    ws, x = pair()
    result = lso.solve(G, ws, x, losses.MSE(), num_steps=4, **FAST)
    assert torch.equal(result.image, G.synthesis(result.ws, noise=result.noise)) and result.ended == "all steps done"
    assert len(result.history) == 4 and {"mse", "reg"} <= set(result.history[0]) and result.peak_bytes > 0
    back = inversion.load(result.save(tmp_path / "lso"))
    assert torch.equal(back.ws, result.ws) and back.config["lam_reg"] == 0.01
    cut = lso.solve(G, ws, x, losses.MSE(), num_steps=4, watch=lambda its: islice(its, 2), **FAST)
    assert "stopped" in cut.ended and cut.best_step == 1


def test_other_canvases(G):
    ws, x = pair(size=(16, 24))
    assert lso.solve(G, ws, x, losses.MSE(), num_steps=2, **FAST).image.shape == (1, 3, 16, 24)


def test_scaled_lam_reg(G):
    ws, x = pair(2)
    w_std = inversion.w_statistics(G, samples=100)[1]
    lam = lso.scaled_lam_reg(G, ws, x, losses.MSE(), share=0.5, w_samples=100)
    assert lam * w_std**2 == pytest.approx(0.5 * float((G.synthesis(ws) - x).square().mean()), rel=1e-6)


@pytest.mark.parametrize("layers", [[], [0, 0], [6], [-1]])
def test_layers_that_are_no_codes(G, layers):
    ws, x = pair()
    with pytest.raises(UnknownName, match="layers"):
        lso.optimise(G, ws, x, losses.MSE(), layers=layers, **FAST)


def test_bad_input_is_refused_before_the_first_step(G):
    ws, x = pair(2)
    run = lambda ws=ws, x=x, G=G, **more: lso.optimise(G, ws, x, losses.MSE(), **{**FAST, **more})
    for bad, match in (((ws[:1], x), "mixed codes"), ((ws[:, :4], x), "mixed codes"), ((ws, x[:, :1]), "target")):
        with pytest.raises(ShapeError, match=match):
            run(*bad)
    with pytest.raises(ShapeError, match="directions"):
        run(directions=torch.eye(7))
    with pytest.raises(UnknownName, match="did you mean 'lam_reg'"):
        run(lam_regg=1.0)
    with pytest.raises(UnknownName, match="num_steps"):
        run(num_steps=0)
    plain = Generator(z_dim=8, w_dim=8, resolution=16, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    with pytest.raises(ShapeError, match="16x16"):
        run(G=plain, x=pair(2, (16, 24))[1])


class Poisoned(losses.MSE):
    def _terms(self, pred, target):
        self.calls = getattr(self, "calls", 0) + 1
        terms = super()._terms(pred, target)
        return {k: v * float("nan") if self.calls > 3 else v for k, v in terms.items()}


def test_a_loss_that_is_not_finite_keeps_the_best(G):
    ws, x = pair()
    with pytest.raises(NonFiniteLoss, match="step 3") as caught:
        descent.last(lso.optimise(G, ws, x, Poisoned(), num_steps=6, **FAST))
    assert caught.value.best.variables["w_opt"].shape == (1, 5, 8)


def test_the_shipped_networks():
    """LSO lowers d_h, and leaves the late codes alone."""
    G_s, G_t = weights.load_generator("portraits_inr128"), weights.load_generator("cartoon_inr128")
    lam, loss = mixing.paper_lambdas(128), losses.named("vgg_high", weights="shipped")
    G_m = mixing.lerp_generators(G_s, G_t, lam)
    ws = G_s.mapping(torch.randn(2, G_s.z_dim, generator=torch.Generator().manual_seed(0)))
    w_m = mixing.lerp_ws(ws[:1], ws[1:], lam)
    x = portraits.render(portraits.sample(1, seed=7), 128)
    result = lso.solve(G_m, w_m, x, loss, lam_reg=1e-4, optimise_noise=False, num_steps=8)
    before, after = (float(loss(image, x)["perceptual"]) for image in (G_m.synthesis(w_m), result.image))
    assert after < 0.9 * before and torch.equal(result.ws[:, 5:], w_m[:, 5:])
