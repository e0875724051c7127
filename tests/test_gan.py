"""The GAN recipe on a tiny scale: both networks, both phases, sources, exact resuming, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hrlib import image, weights
from hrlib.errors import InvalidValue, LayoutMismatch, NonFiniteLoss, ShapeError, StoreError, UnknownName
from hrlib.training import (
    checkpoints,
    dualstylegan,
    gan,
    gan3d,
    identity,
    inr_head,
    loop,
    picture_sets,
    shipped_gans,
    starganv2,
)
from hrlib.training.cli import app
from hrlib.training.recipe import GanRecipe

TINY = GanRecipe(
    resolution=16,
    z_dim=70,
    w_dim=8,
    channels={4: 8, 8: 8, 16: 4},
    mapping_layers=2,
    inr_hidden=8,
    batch=4,
    warm_images=12,
    warm_set=8,
    total_images=40,
    r1_every=2,
    mixing_prob=0.5,
    anchor=1.0,
    ada_images=100,
)
PLAIN = replace(TINY, warm_images=0, anchor=0.0)


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for _ in picture_sets.render_set(folder, 16, resolution=16, z_dim=TINY.z_dim, seed=3):
        pass
    return picture_sets.load_set(folder)


@pytest.fixture(scope="module")
def pictures(portraits):
    """The same pictures, as a folder of files would give them: without latents."""
    return replace(portraits, z=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A pair of files, as `snapshot` writes them; the generator's w_avg is not zero."""
    state = gan.start(replace(TINY, seed=5))
    for net in (state.G_ema, state.D):
        for p in net.parameters():
            p.data.add_(0.01)
    state.G_ema.mapping.w_avg.fill_(0.5)
    folder = tmp_path_factory.mktemp("source")
    gan.snapshot(state, folder, 7)
    return str(folder / "000000007.safetensors")


def steps(recipe, pictures, state, n):
    rows = []
    for row in gan.train(recipe, pictures, state):
        rows.append(row)
        if len(rows) == n:
            break
    return rows


def equal(a, b):
    a, b = (checkpoints.gather(s.parts) if isinstance(s, gan.State) else s for s in (a, b))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# --- phases -----------------------------------------------------------------------------------------------------------


def test_the_warm_start_leaves_the_noise_strengths_alone_and_the_gan_phase_does_not(portraits):
    state = gan.start(TINY)
    strength = lambda: torch.stack(
        [state.G.synthesis.get_parameter(f"{n}.noise_strength").detach() for n in state.G.synthesis.conv_names()]
    )
    rows = steps(TINY, portraits, state, 3)
    assert all(set(row) == {"step", "images", "regression"} for row in rows)
    assert torch.equal(strength(), torch.full((5,), TINY.noise_strength))
    rows = steps(TINY, portraits, state, 7)
    assert {"adversarial", "anchor", "D_fake", "D_real", "R1", "sign", "augment_p"} <= set().union(*rows)
    assert not torch.equal(strength(), torch.full((5,), TINY.noise_strength))
    assert state.step * TINY.batch == TINY.total_images


def test_regression_lowers_its_loss(portraits):
    recipe = replace(TINY, warm_images=400, total_images=400, bf16=False)
    rows = steps(recipe, portraits, gan.start(recipe), 100)
    mean = lambda part: np.mean([row["regression"] for row in part])
    assert mean(rows[-10:]) < 0.8 * mean(rows[:10])


def test_the_average_generator_lags_behind_and_tracks_w(portraits):
    state = gan.start(TINY)
    before = state.G_ema.synthesis.inr.fc2.weight.clone()
    steps(TINY, portraits, state, 10)
    moved = (state.G_ema.synthesis.inr.fc2.weight - before).norm()
    assert moved > 0 and not torch.equal(state.G_ema.synthesis.inr.fc2.weight, state.G.synthesis.inr.fc2.weight)
    assert state.G_ema.mapping.w_avg.abs().max() > 0


def test_the_anchor_compares_with_the_picture_as_it_is(portraits):
    """Neither mirroring nor augmentation of what the discriminator sees reaches the anchor."""
    anchors = []
    for mirror, p in ((False, 0.0), (True, 1.0)):
        recipe = replace(TINY, warm_images=0, mixing_prob=0.0, mirror=mirror, bf16=False)
        state = gan.start(recipe)
        state.ada[0] = p
        anchors.append(steps(recipe, portraits, state, 1)[0]["anchor"])
    assert anchors[0] == anchors[1]


def test_augmentation_follows_the_discriminator(portraits):
    recipe = replace(PLAIN, total_images=400)
    rows = steps(recipe, portraits, gan.start(recipe), 60)
    p, sign = [np.reshape([row[k] for row in rows], (15, 4)) for k in ("augment_p", "sign")]
    assert (p[1:, :3] == p[:-1, 3:]).all()  # moves every fourth step
    moves = np.diff(p[:, 3], prepend=0)
    rises = sign.mean(1) > recipe.ada_target
    assert rises.any() and not rises.all()
    assert moves[rises] == pytest.approx(np.minimum(0.16, 1 - (p[:, 3] - moves)[rises]))  # 16 images of 100
    assert (moves[~rises] <= 0).all()
    off = steps(replace(recipe, ada_target=0.0), portraits, gan.start(recipe), 3)
    assert all("augment_p" not in row for row in off)


@pytest.mark.parametrize("network", ["style_inr", "stylegan2"])
def test_pictures_without_latents_train_both_networks(pictures, network):
    recipe = replace(PLAIN, network=network)
    state = gan.start(recipe)
    first = state.G.synthesis.b16.conv1.weight.detach().clone()
    rows = steps(recipe, pictures, state, 4)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert not torch.equal(first, state.G.synthesis.b16.conv1.weight)


def test_what_cannot_be_trained(pictures, portraits):
    begin = lambda recipe, pictures: next(gan.train(recipe, pictures, gan.start(recipe)))
    with pytest.raises(InvalidValue, match="no latents"):
        begin(TINY, pictures)
    with pytest.raises(ShapeError, match="16 px"):
        begin(replace(PLAIN, resolution=32, channels=PLAIN.channels | {32: 4}), portraits)
    with pytest.raises(ShapeError, match="z_dim 71"):
        begin(replace(TINY, z_dim=71), portraits)
    with pytest.raises(InvalidValue, match="multiple of 4"):
        begin(replace(TINY, batch=6), portraits)
    with pytest.raises(UnknownName, match="style_inr"):
        gan.start(replace(TINY, network="styleinr"))


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_fine_tuning_begins_as_its_source(source, pictures):
    recipe = GanRecipe(**gan.like(source), batch=4, total_images=40)
    assert (recipe.resolution, recipe.z_dim, recipe.network) == (16, 70, "style_inr")
    state, (G, D) = gan.start(recipe), gan.pair(source)
    for net in (state.G, state.G_ema):
        equal(net.state_dict(), G.state_dict())
    equal(state.D.state_dict(), D.state_dict())
    assert "all layers" in state.origin
    steps(recipe, pictures, state, 1)
    still = [k for k, p in state.G.named_parameters() if torch.equal(p, G.get_parameter(k))]
    assert not still  # all layers are trained


def test_the_mapping_can_be_kept(source, portraits):
    recipe = GanRecipe(**gan.like(source), batch=4, warm_images=8, total_images=40, train_mapping=False, anchor=1.0)
    state, (G, _) = gan.start(recipe), gan.pair(source)
    steps(recipe, portraits, state, 4)
    for net in (state.G, state.G_ema):
        equal(dict(net.mapping.named_parameters()), dict(G.mapping.named_parameters()))
    assert not torch.equal(state.G.synthesis.b4.const, G.synthesis.b4.const)
    other = gan.start(recipe)
    checkpoints.restore(other.parts, checkpoints.gather(state.parts))
    equal(other, state)


def test_a_backbone_is_shared_and_nothing_else(source):
    recipe = replace(TINY, network="stylegan2", backbone_from=source)
    state, (G, D) = gan.start(recipe), gan.pair(source)
    own, theirs = state.G.state_dict(), G.state_dict()
    shared = set(own) & set(theirs)
    assert all(".torgb." in k for k in set(own) - shared) and all(".inr." in k for k in set(theirs) - shared)
    for k in shared:
        assert torch.equal(own[k], theirs[k]), k
    equal(state.D.state_dict(), D.state_dict())
    assert f"{len(shared)} tensors" in state.origin
    equal(state.G_ema.state_dict(), own)


@pytest.mark.parametrize("network, head", [("stylegan2", "torgb."), ("style_inr", "inr.")])
def test_the_layers_of_rgb_alone_are_taught_and_then_all_learn(source, pictures, network, head):
    recipe = replace(PLAIN, network=network, backbone_from=source, teach_images=32, total_images=48)
    state, rows = gan.start(recipe), []
    before = {k: v.clone() for k, v in state.G.named_parameters()}
    moved = lambda: {k for k, v in state.G.named_parameters() if not torch.equal(v, before[k])}
    for row in gan.train(recipe, pictures, state):
        rows.append(row)
        if "lesson" in row:
            assert moved() and all(head in k for k in moved())
    assert ["lesson" in row for row in rows] == [True] * (32 // recipe.batch) + [False] * (16 // recipe.batch)
    assert any(head not in k for k in moved())
    with pytest.raises(InvalidValue, match="without backbone_from"):
        next(gan.train(replace(PLAIN, teach_images=32), pictures, gan.start(PLAIN)))


def test_sources_of_another_kind_or_shape_are_refused(source):
    with pytest.raises(LayoutMismatch, match="backbone_from"):
        gan.start(replace(TINY, network="stylegan2", source=source))
    with pytest.raises(LayoutMismatch, match="wrong shape"):
        gan.start(replace(TINY, w_dim=16, source=source))
    with pytest.raises(LayoutMismatch, match="wrong shape"):
        gan.start(replace(TINY, mapping_layers=2, w_dim=16, network="stylegan2", backbone_from=source))
    with pytest.raises(InvalidValue, match="both"):
        gan.start(replace(TINY, source=source, backbone_from=source))


def test_the_shipped_family_is_consistent():
    for name, member in shipped_gans.GANS.items():
        r = member.recipe
        assert r.warm_images < r.total_images and member.count <= member.n, name
        assert (r.resolution, r.z_dim) == (256 if name == "portraits_inr256" else 128, shipped_gans.Z_DIM)
        assert GanRecipe.read(r.summary()) == r
        start = r.source or r.backbone_from
        assert (start is None) == (name == shipped_gans.SOURCE)
    with pytest.raises(UnknownName, match="cartoon_inr128"):
        shipped_gans.named("cartoon_inr")


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_resumed_training_is_the_same_training(portraits, tmp_path):
    whole, first = gan.start(TINY), gan.start(TINY)
    steps(TINY, portraits, whole, 10)
    steps(TINY, portraits, first, 5)
    save_file(checkpoints.gather(first.parts), tmp_path / "checkpoint.safetensors")
    second = gan.start(replace(TINY, seed=7))  # other initial values, all overwritten
    checkpoints.restore(second.parts, load_file(tmp_path / "checkpoint.safetensors"))
    second.step = 5
    steps(TINY, portraits, second, 5)
    equal(whole, second)


def test_a_folder_keeps_log_sheet_snapshots_and_refuses_another_recipe(portraits, tmp_path):
    every = dict(checkpoint_every=8, snapshot_every=20)
    gan.run(replace(TINY, total_images=20), portraits, tmp_path, **every, tell=lambda text: None)
    with open(tmp_path / loop.LOG, "r+") as f:
        columns = f.read().splitlines()[0].count(",") + 1
        f.write("6,24" + "," * (columns - 2) + "\n")  # killed after the log, before the checkpoint
    told = []
    state = gan.run(TINY, portraits, tmp_path, **every, tell=told.append)  # prolonged
    assert "from step 5" in told[0]
    images = [int(line.split(",")[1]) for line in (tmp_path / loop.LOG).read_text().splitlines()[1:]]
    assert images == [8, 16, 20, 24, 32, 40]
    assert sorted(f.name for f in (tmp_path / loop.SNAPSHOTS).iterdir()) == [
        f"0000000{n}{d}.safetensors" for n in (20, 40) for d in ("", "_discriminator")
    ]
    assert (tmp_path / loop.SHEET).stat().st_size > 1000
    equal(gan.finished(loop.trained(tmp_path)), state)
    again = weights.load_generator(str(tmp_path / loop.SNAPSHOTS / "000000040.safetensors"))
    equal(again.state_dict(), state.G_ema.state_dict())
    with pytest.raises(StoreError, match=r"with lr = 0\.003"):
        gan.run(replace(TINY, lr=0.1), portraits, tmp_path, **every)
    with pytest.raises(StoreError, match="training folder"):
        loop.trained(tmp_path / "elsewhere")


def test_a_distance_enters_the_log_when_it_is_due(portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "frechet", lambda state, data, n: float(state.step * n))
    quietly(PLAIN, portraits, tmp_path, checkpoint_every=16, frechet_every=12, frechet_n=2)
    log = pd.read_csv(tmp_path / loop.LOG)
    assert log["images"].tolist() == [12, 16, 24, 32, 36, 40]
    assert log["frechet"].fillna(-1).tolist() == [6, -1, 12, -1, 18, -1]


def test_no_checkpoint_is_written_before_the_end_if_none_is_wanted(portraits, tmp_path):
    quietly(replace(PLAIN, total_images=12), portraits, tmp_path, checkpoint_every=0)
    assert pd.read_csv(tmp_path / loop.LOG)["step"].tolist() == [3] and loop.trained(tmp_path).step == 3


def quietly(recipe, pictures, folder, **options):
    return gan.run(recipe, pictures, folder, tell=lambda text: None, **options)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Pictures of other people."""
    folder = tmp_path_factory.mktemp("others")
    for _ in picture_sets.render_set(folder, 16, resolution=16, z_dim=TINY.z_dim, seed=4):
        pass
    return picture_sets.load_set(folder)


def test_a_damaged_log_is_named_and_a_new_one_may_take_its_place(portraits, tmp_path):
    gan.run(short := replace(TINY, total_images=8), portraits, tmp_path, tell=lambda text: None)
    for content in (b"", b"step\nfour\n", b"\xff\xfe\n"):
        (tmp_path / loop.LOG).write_bytes(content)
        with pytest.raises(StoreError, match=r"log.csv is damaged"):
            gan.run(replace(short, total_images=12), portraits, tmp_path, tell=lambda text: None)
    (tmp_path / loop.LOG).unlink()
    gan.run(replace(short, total_images=12), portraits, tmp_path, tell=lambda text: None)
    assert len((tmp_path / loop.LOG).read_text().splitlines()) == 2


def test_a_divergence_speaks_of_a_checkpoint_only_if_there_is_one(portraits, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"lower lr$"):
        gan.run(replace(PLAIN, lr=1e30, total_images=16), portraits, tmp_path, tell=lambda text: None)
    (tmp_path / loop.CHECKPOINT).touch()
    assert str(loop.diverged("D_fake = nan", tmp_path / loop.CHECKPOINT)).endswith("is from before")


def test_a_run_goes_on_with_its_own_data_alone(portraits, others, tmp_path):
    short = replace(PLAIN, total_images=8)
    quietly(short, portraits, tmp_path)
    before = loop.trained(tmp_path).tensors
    for longer in (short, replace(short, total_images=16)):
        with pytest.raises(StoreError, match=r"with data\.seed = 3\n  expected: data\.seed = 4\n"):
            quietly(longer, others, tmp_path)
    equal(loop.trained(tmp_path).tensors, before)
    with pytest.raises(InvalidValue, match="total_images = 4"):
        quietly(replace(short, total_images=4), portraits, tmp_path)
    assert quietly(short, portraits, tmp_path).step == 2  # nothing is left to do
    assert quietly(short, others, tmp_path, force=True).step == 2 and not (tmp_path / loop.SNAPSHOTS).exists()
    with pytest.raises(StoreError, match=r"with data\.seed = 4"):
        quietly(short, portraits, tmp_path)


def test_a_forced_run_goes_on_if_it_is_the_same(portraits, tmp_path):
    quietly(replace(PLAIN, total_images=8), portraits, tmp_path)
    told = []
    gan.run(replace(PLAIN, total_images=12), portraits, tmp_path, force=True, tell=told.append)
    assert "from step 2" in told[0]


def test_a_run_goes_on_with_its_own_source_alone(source, portraits, tmp_path):
    folder = tmp_path / "of_mine"
    for suffix in ("", "_discriminator"):
        own = Path(source.replace(".safetensors", f"{suffix}.safetensors"))
        (tmp_path / f"pair{suffix}.safetensors").write_bytes(own.read_bytes())
    name = str(tmp_path / "pair.safetensors")
    recipe = GanRecipe(**gan.like(name), batch=4, total_images=8)
    quietly(recipe, portraits, folder)
    weights.save_network(gan.start(replace(TINY, seed=6)).G_ema, name, force=True)  # the file is another one now
    with pytest.raises(StoreError, match="start = "):
        quietly(replace(recipe, total_images=16), portraits, folder)


def test_what_is_no_training_of_ours_is_left_alone(portraits, tmp_path):
    (tmp_path / "samples.png").write_text("precious")
    with pytest.raises(StoreError, match=r"is not empty \(samples.png\)"):
        quietly(PLAIN, portraits, tmp_path)
    with pytest.raises(StoreError, match="holds a training set"):
        quietly(PLAIN, portraits, portraits.folder)
    with pytest.raises(StoreError, match="cannot be written"):
        quietly(PLAIN, portraits, tmp_path / "samples.png" / "run")
    assert (tmp_path / "samples.png").read_text() == "precious"


def test_two_trainings_never_share_a_folder(portraits, tmp_path):
    def meet(text):
        with pytest.raises(StoreError, match="another run"):
            quietly(PLAIN, portraits, tmp_path, force=True)
        met.append(text)

    met = []
    gan.run(replace(PLAIN, total_images=4), portraits, tmp_path, tell=meet)
    assert met


# --- numbers ----------------------------------------------------------------------------------------------------------

RECIPES = [
    GanRecipe,
    inr_head.InrHeadRecipe,
    identity.IdentityRecipe,
    dualstylegan.DualStyleGANRecipe,
    starganv2.StarGANv2Recipe,
    gan3d.Gan3dRecipe,
]


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__module__.split(".")[-1] + "." + kind.__name__)
def test_every_number_of_every_recipe_is_checked(kind):
    plain = [f.name for f in fields(kind) if type(f.default) in (int, float)]
    assert set(plain) <= set(kind.INTERVALS) <= {f.name for f in fields(kind)}
    for name in plain:
        with pytest.raises(InvalidValue, match=f"{name} = nan"):
            kind(**{name: float("nan")})
        with pytest.raises(InvalidValue, match=name):
            kind(**{name: None})
        assert getattr(kind(**{name: np.float64(getattr(kind(), name))}), name) == getattr(kind(), name)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("batch", "r1_every", "ema_images", "total_images", "w_dim", "ada_images", "lr")),
        *({"total_images": -5}, {"lr": -1}, {"mixing_prob": 1.5}, {"seed": 10**15}, {"warm_images": -7}),
        *({"channels": {4: 0}}, {"conv_clamp": 0}, {"ada_target": -1}, {"r1_gamma": float("inf")}),
    ],
    ids=str,
)
def test_recipes_of_senseless_numbers_cannot_be_made(wrong):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        replace(TINY, **wrong)


@pytest.mark.parametrize(
    "words",
    [
        "--total-images -5",
        "--batch 0",
        "--mixing-prob nan",
        "--frechet-n 1",
        "--channel-max 0",
        "--checkpoint-every -1",
        "--frechet-n 99999999999999999999",
        "--w-dim 99999999999",
        "--batch 99999999999",
        "--channel-base 99999999999 --channel-max 99999999999",
    ],
)
def test_senseless_options_begin_nothing(words, portraits, tmp_path):
    fixed = ["gan", "--data", str(portraits.folder), "--folder", str(tmp_path / "run"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*fixed, *words.split()])
    assert isinstance(done.exception, InvalidValue) and not (tmp_path / "run").exists()


def command(pictures, folder, *options, images=64, launcher=()):
    fixed = "--w-dim 8 --channel-base 128 --channel-max 8 --inr-hidden 8 --mapping-layers 2 --batch 8 --r1-every 2"
    lengths = f"--warm-images 16 --anchor 1 --total-images {images} --checkpoint-every 8 --frechet-every 0"
    more = "--threads 1 --device cpu --ada-images 100 --snapshot-every 0"
    args = ["train", "gan", "--data", str(pictures.folder), "--folder", str(folder)]
    words = [*args, *f"{fixed} {lengths} {more}".split(), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "hrlib.cli", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return out


def test_a_killed_training_goes_on_bitwise(portraits, tmp_path):
    finish(command(portraits, tmp_path / "whole", images=160))
    broken = command(portraits, tmp_path / "broken", images=160)
    while not (tmp_path / "broken" / loop.CHECKPOINT).exists():
        assert broken.poll() is None, broken.stdout.read()
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    broken.communicate()
    killed_at = loop.trained(tmp_path / "broken").step
    assert 0 < killed_at < 20
    assert f"from step {killed_at}" in finish(command(portraits, tmp_path / "broken", images=160))
    whole, broken = (loop.trained(tmp_path / name) for name in ("whole", "broken"))
    assert whole.step == broken.step == 20 and whole.recipe == broken.recipe
    equal(whole.tensors, broken.tensors)


def test_two_processes_hold_the_same_parameters(portraits, tmp_path):
    """Each works on its share of the batches; they exchange gradients and statistics."""
    script = tmp_path / "two.py"
    script.write_text(
        "import json, sys, torch\n"
        "from pathlib import Path\n"
        "from accelerate import Accelerator\n"
        "from safetensors.torch import save_file\n"
        "from hrlib.training import checkpoints, gan, picture_sets\n"
        "from hrlib.training.recipe import GanRecipe\n"
        "torch.set_num_threads(1)\n"
        "set_, recipe, out = map(Path, sys.argv[1:])\n"
        "a = Accelerator(cpu=True)\n"
        "recipe = GanRecipe.read(json.loads(recipe.read_text()))\n"
        "state = gan.start(recipe)\n"
        "for row in gan.train(recipe, picture_sets.load_set(set_), state, a): pass\n"
        "save_file(checkpoints.gather(state.parts), out / f'{a.process_index}of{a.num_processes}.safetensors')\n"
    )
    recipe = replace(TINY, batch=8, ada_images=100, total_images=48)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.summary()))
    words = [str(script), str(portraits.folder), str(tmp_path / "recipe.json"), str(tmp_path)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    both = [load_file(tmp_path / f"{rank}of2.safetensors") for rank in (0, 1)]
    equal(*both)
    alone = gan.start(recipe)
    assert not torch.equal(both[0]["G/synthesis.b4.const"], alone.G.synthesis.b4.const)


COMMANDS = [
    *(
        "network cartoon_inr128",
        "ship anime_inr128",
        "starganv2",
        "dualstylegan anime",
        "gan3d",
        "identity",
        "pose",
        "perceptual deit",
    ),
    "style-inr --from portraits_sg128 --out FILE",
]


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_replaces_a_finished_network_and_says_so_before_it_works(words, tmp_path, monkeypatch):
    """The shipped networks are in data/weights; FILE is the user's."""
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.safetensors"
    mine.write_text("precious")
    done = CliRunner().invoke(app, words.replace("FILE", str(mine)).split())
    assert isinstance(done.exception, StoreError) and "is there already" in str(done.exception), done.output
    assert list(tmp_path.iterdir()) == [mine] and mine.read_text() == "precious"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_one_command_renders_and_trains_a_shipped_network(tmp_path, monkeypatch):
    tiny = shipped_gans.ShippedGan("portraits/cartoon", 12, 8, TINY)
    monkeypatch.setitem(shipped_gans.GANS, "tiny", tiny)
    words = ["network", "tiny", "--work", str(tmp_path), "--frechet-every", "0", "--no-ship", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--warm-images", "4", "--total-images", "8"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(picture_sets.load_set(tmp_path / "portraits_cartoon16")) == 8
    trained = loop.trained(tmp_path / "tiny")
    assert (trained.recipe["warm_images"], trained.recipe["total_images"], trained.step) == (4, 8, 2)


def test_a_folder_of_pictures_fine_tunes_a_source_with_the_defaults(source, tmp_path):
    for i in range(5):
        image.write(torch.rand(1, 3, 20, 31, generator=torch.Generator().manual_seed(i)), tmp_path / f"mine/{i}.png")
    command = lambda *words: CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert command("pack", tmp_path / "mine", tmp_path / "set", "--resolution", 16).exit_code == 0
    short = ("--total-images", 32, "--snapshot-every", 16, "--frechet-every", 0, "--device", "cpu")
    done = command("gan", "--data", tmp_path / "set", "--source", source, "--folder", tmp_path / "run", *short)
    assert done.exit_code == 0 and "all layers from" in done.output
    recipe = GanRecipe.read(loop.trained(tmp_path / "run").recipe)
    assert recipe == GanRecipe(**gan.like(source), total_images=32)
    assert (recipe.mirror, recipe.ada_target, recipe.mixing_prob) == (True, 0.6, 0.9)  # StyleGAN2-ADA's
    snapshot = tmp_path / "run" / loop.SNAPSHOTS / "000000016.safetensors"
    assert gan.like(str(snapshot))["w_dim"] == TINY.w_dim  # a source in its turn
    with pytest.raises(InvalidValue, match="no latents"):
        command("gan", "--data", tmp_path / "set", "--source", source, "--folder", tmp_path / "no", "--warm-images", 8)


def test_the_distance_falls_when_samples_are_pictures(portraits, monkeypatch):
    state = gan.start(TINY)
    monkeypatch.setattr(gan, "pooled_features", lambda x: x.mean((2, 3)))
    far = gan.frechet(state, portraits, 16)
    monkeypatch.setattr(gan, "drawn", lambda G, n, seed: iter([portraits.batch(torch.arange(n))[0]]))
    assert gan.frechet(state, portraits, 16) < 1e-6 < far


def test_rates_fall_at_the_end_alone(portraits):
    recipe = replace(TINY, lr=0.01, lr_fall=0.4, total_images=40)
    assert [round(gan.lr(recipe, step), 5) for step in range(10)] == [0.01] * 7 + [0.00775, 0.0055, 0.00325]
    assert gan.lr(replace(recipe, lr_fall=0.0), 9) == 0.01
    state = gan.start(recipe)
    steps(recipe, portraits, state, 1)
    assert [g["lr"] for g in state.opt_G.param_groups] == pytest.approx([0.3, 0.01, 0.0])
    steps(recipe, portraits, state, 9)
    rates = [g["lr"] for g in (*state.opt_G.param_groups, *state.opt_D.param_groups)]
    assert rates == pytest.approx([0.00325, 0.00325, 0.0000325, 0.00325])


def test_fresh_latents_are_not_anchored(portraits):
    recipe = replace(TINY, warm_images=0, mixing_prob=0.0, fresh_prob=0.5, total_images=80)
    rows = steps(recipe, portraits, gan.start(recipe), 20)
    anchored = sum("anchor" in row for row in rows)
    assert 4 < anchored < 16
    rows = steps(replace(recipe, fresh_prob=1.0), portraits, gan.start(recipe), 3)
    assert not any("anchor" in row for row in rows)
