"""Foreign checkpoints: exact states, and refusal of everything else with nothing executed (a canary file proves it)."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrlib import nets, weights
from hrlib.errors import DamagedFile, HostileCheckpoint, LayoutMismatch, StoreError, UnknownName, WeightsError
from hrlib.weights import foreign, load, pickles

FIXTURES = Path(__file__).parent / "fixtures"
NVLABS = FIXTURES / "01_stylegan2_ada" / "network-snapshot-res32.pkl"
ROSINALITY = FIXTURES / "02_rosinality" / "rosinality-64.pt"


class StockRecord:
    """What NVlabs' unpickler would build, without its exec: an independent way to read the file."""

    def __init__(self, meta):
        self.__dict__.update(meta["state"])
        self.class_name = meta["class_name"]


class StockUnpickler(pickle.Unpickler):
    """Trusts the fixture: torch's and numpy's own functions, found by import."""

    def find_class(self, module, name):
        if module == "torch_utils.persistence":
            return StockRecord
        if module == "dnnlib.util":
            return dict
        return super().find_class(module, name)


def stock_state(module, prefix=""):
    state = {}
    for group in (module._parameters, module._buffers):
        state |= {prefix + name: t.detach() for name, t in group.items() if t is not None}
    for name, child in module._modules.items():
        state |= stock_state(child, f"{prefix}{name}.")
    return state


def in_place(content, path):
    """Save `content` as the file kind that the path's suffix names."""
    path.write_bytes(content)
    return path


# --- what is converted is exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["G_ema", "G", "D"])
def test_nvlabs_state_equals_the_stock_one(which):
    stock = stock_state(StockUnpickler(NVLABS.open("rb")).load()[which])
    load = weights.load_discriminator if which == "D" else weights.load_generator
    ours = (load(NVLABS) if which == "D" else load(NVLABS, which=which)).state_dict()
    assert {k for k in stock if not k.endswith("resample_filter")} == set(ours)
    assert all(torch.equal(ours[k], stock[k]) for k in ours)


class Repickled:
    """A network record that pickles the way NVlabs' persistence module writes it."""

    def __init__(self, meta):
        self.meta = meta

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, monkeypatch, protocol):
    """NVlabs' own files were written by Python 3.7, in protocol 3; the fixtures are in protocol 4."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("only named, never called")

    class EasyDict(dict):
        pass

    for module, thing in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        thing.__module__, thing.__qualname__ = module, thing.__name__
        monkeypatch.setitem(sys.modules, module.partition(".")[0], types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], thing.__name__, thing)

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "torch_utils.persistence":
                return Repickled
            return EasyDict if module == "dnnlib.util" else super().find_class(module, name)

    file = tmp_path / "again.pkl"
    file.write_bytes(pickle.dumps(Reader(NVLABS.open("rb")).load(), protocol=protocol))
    for loaded in (weights.load_generator, weights.load_discriminator):
        a, b = loaded(file).state_dict(), loaded(NVLABS).state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_g_and_g_ema_are_different_networks():
    a, b = (weights.load_generator(NVLABS, which=w).state_dict()["synthesis.b4.const"] for w in ("G", "G_ema"))
    assert not torch.equal(a, b)


def test_rosinality_tensors_equal_torchs_own_reading():
    ours, torchs = pickles.read(ROSINALITY, "torch"), torch.load(ROSINALITY, weights_only=True)
    for name in ("g_ema", "g", "d"):
        assert list(ours[name]) == list(torchs[name])
        assert all(torch.equal(ours[name][k], torchs[name][k]) for k in ours[name])
    G = weights.load_generator(ROSINALITY)
    assert torch.equal(G.w_avg, torchs["latent_avg"].reshape(-1))
    assert not G.training and not any(p.requires_grad for p in G.parameters())


def test_legacy_torch_format_and_odd_types(tmp_path):
    """Files before torch 1.6, shared storages, views, every number type, training options, optimiser state."""
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "a": base,
        "view": base.t()[1:3],
        "half": base.half(),
        "bf": base.bfloat16(),
        "double": base.double(),
        "ints": [base.to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)],
        "empty": torch.empty(0),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(base),
        "args": argparse.Namespace(size=64, lr=0.002, path="x"),
        "np": np.float64(0.25),
        "state": collections.OrderedDict(w=base),
        "module": torch.nn.Linear(2, 3).state_dict(),  # an OrderedDict with attributes
        "set": {1, 2},
    }
    for new in (True, False):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        got = pickles.read(tmp_path / "a.pt", "torch")
        for key in ("a", "view", "half", "bf", "double", "empty", "scalar", "parameter"):
            assert torch.equal(got[key], content[key]) and got[key].dtype == content[key].dtype, key
        assert all(torch.equal(a, b) for a, b in zip(got["ints"], content["ints"], strict=True))
        assert got["args"].values == {"size": 64, "lr": 0.002, "path": "x"}
        assert got["np"] == 0.25 and torch.equal(got["state"]["w"], base) and got["set"] == {1, 2}
        assert list(got["module"]) == ["weight", "bias"]


def test_rosinality_training_file_with_args_and_optimisers(tmp_path):
    content = torch.load(ROSINALITY, weights_only=True)
    w = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([w])
    w.grad = torch.ones(3)
    adam.step()
    content |= {"g_optim": adam.state_dict(), "args": argparse.Namespace(size=64), "ada_aug_p": 0.1}
    torch.save(content, tmp_path / "000100.pt")
    a, b = weights.load_generator(tmp_path / "000100.pt"), weights.load_generator(ROSINALITY)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_rosinality_file_without_latent_avg_gets_a_measured_one(tmp_path):
    content = torch.load(ROSINALITY, weights_only=True)
    del content["latent_avg"]
    torch.save(content, tmp_path / "a.pt")
    G = weights.load_generator(tmp_path / "a.pt")
    samples = G.mapping(torch.randn(20_000, G.z_dim, generator=torch.Generator().manual_seed(7)))[:, 0]
    assert (G.w_avg - samples.mean(0)).abs().max() < 5 * samples.std(0).max() / 100  # 10,000 samples: sigma / 100
    assert torch.equal(G.w_avg, weights.load_generator(tmp_path / "a.pt").w_avg)
    file = weights.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert "w_avg measured" in weights.load_state(file)[1]["card"]


def test_psp_family_decoder(tmp_path):
    content = torch.load(ROSINALITY, weights_only=True)
    decoder = {f"decoder.{k}": v for k, v in content["g_ema"].items()}
    psp = {
        "state_dict": decoder | {"encoder.x": torch.zeros(2)},
        "opts": {"size": 64},
        "latent_avg": content["latent_avg"].reshape(1, -1).repeat(10, 1),
    }
    torch.save(psp, tmp_path / "psp.pt")
    a, b = weights.load_generator(tmp_path / "psp.pt"), weights.load_generator(ROSINALITY)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("source,which", [(NVLABS, "G_ema"), (NVLABS, "D"), (ROSINALITY, "G_ema"), (ROSINALITY, "D")])
def test_convert_round_trips_bit_for_bit(tmp_path, source, which):
    file = weights.convert(source, tmp_path / "out.safetensors", which=which)
    load = weights.load_discriminator if which == "D" else weights.load_generator
    a, b = load(source), load(file)
    assert a.config == b.config
    assert all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())
    metadata = weights.load_state(file)[1]
    assert source.name in metadata["card"] and "SHA-256" in metadata["card"]


def test_nothing_is_converted_onto_its_source_or_another_file(tmp_path, monkeypatch):
    source, link = tmp_path / "net.pkl", tmp_path / "link.safetensors"
    source.write_bytes(NVLABS.read_bytes())
    ours = weights.convert(source)
    assert ours.name == "net.pkl.safetensors", "net.pkl and net.pt in one folder do not collide"
    link.symlink_to(ours)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def too_early(*_):
        raise AssertionError("the checkpoint was read before the destination was tried")

    monkeypatch.setattr(load, "_network", too_early)
    for dst in (ours, None, link, tmp_path / "../" / tmp_path.name / ours.name):
        with pytest.raises(StoreError, match="source itself"):
            weights.convert(ours, dst, force=True)
        with pytest.raises(StoreError, match="there already"):
            weights.convert(source, dst)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.undo()
    assert weights.convert(source, which="D", force=True) == ours and ours.read_bytes() != before[ours.name]


@pytest.mark.parametrize("name", ["net.pkl", "out.pt", "noext", "v1.5"])
def test_what_is_converted_can_be_read_under_its_name(tmp_path, name):
    (tmp_path / "net.pkl").write_bytes(NVLABS.read_bytes())
    file = weights.convert(tmp_path / "net.pkl", tmp_path / name)
    assert file.name == f"{name}.safetensors" and (tmp_path / "net.pkl").read_bytes() == NVLABS.read_bytes()
    assert weights.load_generator(file).config == weights.load_generator(NVLABS).config


def test_16_bits_stay_16_bits(tmp_path):
    half = weights.convert(NVLABS, tmp_path / "half.safetensors", half=True)
    again = weights.convert(half, tmp_path / "again.safetensors")
    assert abs(again.stat().st_size - half.stat().st_size) < 1000  # the cards differ
    assert weights.convert(NVLABS, tmp_path / "whole.safetensors").stat().st_size > 1.9 * half.stat().st_size


def test_non_finite_weights_are_refused(tmp_path):
    content = torch.load(ROSINALITY, weights_only=True)
    key = next(k for k in content["g_ema"] if k.endswith("conv.weight"))
    content["g_ema"][key].view(-1)[0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"nan\.pt holds non-finite .* 1 of \d+ tensors: synthesis"):
        weights.load_generator(tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="non-finite"):
        weights.convert(tmp_path / "nan.pt", tmp_path / "nan.safetensors")
    assert not (tmp_path / "nan.safetensors").exists()
    torch.save({"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}, tmp_path / "flat.pt")
    with pytest.raises(WeightsError, match="in 1 of 2 tensors: b"):
        weights.load_state(tmp_path / "flat.pt")
    codes = {"a.jpg": np.zeros((1, 18, 4), np.float32), "b.jpg": np.full((1, 18, 4), np.nan, np.float32)}
    np.save(tmp_path / "codes.npy", codes)
    with pytest.raises(WeightsError, match="tensors: b"):
        weights.load_codes(tmp_path / "codes.npy")


def test_convert_refuses_unknown_networks(tmp_path):
    with pytest.raises(UnknownName, match="G_ema"):
        weights.convert(NVLABS, tmp_path / "a.safetensors", which="g_ema")
    assert not list(tmp_path.iterdir())


def test_whole_batch_minibatch_statistics_are_kept(tmp_path):
    """NVlabs' group size None (their ffhq.pkl) means one group, whatever the batch."""
    content = pickles.read(NVLABS, "nvlabs")
    content["D"].state["_init_kwargs"]["epilogue_kwargs"]["mbstd_group_size"] = None
    network = foreign.from_nvlabs(content, "D", "x")
    D = weights.load_strictly(nets.build(network.architecture, network.config), network.state, "x")
    x = torch.randn(6, 32, 4, 4)
    std = (x - x.mean(0)).square().mean(0).add(1e-8).sqrt().mean()
    torch.testing.assert_close(D.b4.minibatch_std(x)[:, -1], std.expand(6, 4, 4))


# --- options that would change the arithmetic are refused by name -----------------------------------------------------


def changed(which, *path_and_value):
    content = pickles.read(NVLABS, "nvlabs")
    *path, key, value = path_and_value
    target = content[which].state["_init_kwargs"]
    for step in path:
        target = target.setdefault(step, {})
    target[key] = value
    return content


@pytest.mark.parametrize(
    "which,change,named",
    [
        ("G_ema", ("c_dim", 10), "c_dim"),
        ("G_ema", ("img_channels", 1), "img_channels"),
        ("G_ema", ("synthesis_kwargs", "architecture", "resnet"), "architecture"),
        ("G_ema", ("synthesis_kwargs", "use_noise", False), "use_noise"),
        ("G_ema", ("mapping_kwargs", "lr_multiplier", 1.0), "lr_multiplier"),
        ("G_ema", ("mapping_kwargs", "num_layers", 10**9), "num_layers"),
        ("D", ("architecture", "orig"), "architecture"),
        ("D", ("epilogue_kwargs", "mbstd_num_channels", 4), "mbstd_num_channels"),
        ("D", ("c_dim", 3), "c_dim"),
    ],
)
def test_other_architectures_are_refused(which, change, named):
    with pytest.raises(LayoutMismatch, match=named):
        foreign.from_nvlabs(changed(which, *change), which, "x.pkl")


def test_other_resampling_filter_is_refused():
    content = pickles.read(NVLABS, "nvlabs")
    content["G_ema"].state["_modules"]["synthesis"].state["_modules"]["b8"].state["_buffers"]["resample_filter"] *= 2
    with pytest.raises(LayoutMismatch, match="resampling filter"):
        foreign.from_nvlabs(content, "G_ema", "x.pkl")


def test_flat_options_of_stylegan3s_repository_are_understood():
    content = pickles.read(NVLABS, "nvlabs")
    kwargs = content["G_ema"].state["_init_kwargs"]
    kwargs.update(kwargs.pop("synthesis_kwargs"))
    assert foreign.from_nvlabs(content, "G_ema", "x").config == weights.load_generator(NVLABS).config


def test_missing_networks_and_wrong_layouts(tmp_path):
    only_g = tmp_path / "g.pt"
    torch.save({"g_ema": torch.load(ROSINALITY, weights_only=True)["g_ema"], "latent_avg": None}, only_g)
    with pytest.raises(LayoutMismatch, match="no network 'd'"):
        weights.load_discriminator(only_g)
    vgg = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, vgg)
    with pytest.raises(LayoutMismatch, match="no network 'g_ema'"):
        weights.load_generator(vgg)
    for content in ([1, 2], {"g_ema": {"a": torch.zeros(3)}}, {"g_ema": {}}, {"g_ema": 3}, "text", None):
        torch.save(content, vgg)
        with pytest.raises(LayoutMismatch):
            weights.load_generator(vgg)
    for content in ([1, 2], {"G_ema": 5}, {}, 7):
        with pytest.raises(LayoutMismatch):
            weights.load_generator(in_place(pickle.dumps(content), tmp_path / "a.pkl"))


def test_wrong_shapes_and_keys_are_listed(tmp_path):
    content = torch.load(ROSINALITY, weights_only=True)
    g = content["g_ema"]
    g["style.3.weight"] = g["style.3.weight"][:, :-1]
    del g["convs.2.activate.bias"]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LayoutMismatch) as e:
        weights.load_generator(tmp_path / "a.pt")
    assert "1 missing: synthesis.b16.conv0.bias" in str(e.value)
    assert "mapping.fc2.weight [48, 47] for [48, 48]" in str(e.value)
    g["convs.9.conv.strange"] = torch.zeros(1)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LayoutMismatch, match=r"convs\.9\.conv\.strange"):
        weights.load_generator(tmp_path / "a.pt")


def test_tensorflow_pickles_name_the_tool_that_converts_them(tmp_path):
    # (G, D, Gs) of dnnlib.tflib.network.Network, as pickle protocol 2 writes them
    one = b"cdnnlib.tflib.network\nNetwork\n)\x81}b"
    with pytest.raises(LayoutMismatch, match=r"legacy\.py --source"):
        weights.load_generator(in_place(b"\x80\x02" + one * 3 + b"\x87.", tmp_path / "ffhq.pkl"))


# --- hostile files ----------------------------------------------------------------------------------------------------


class Evil:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stack_global(module, name, argument):
    """`module.name(argument)` through STACK_GLOBAL, whose name may hold dots."""

    def text(s):
        return b"\x8c" + bytes([len(s)]) + s.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def hostile_pickles(canary):
    """(name, pickle) that would create `canary` when executed, or exhaust memory."""
    touch = f"open({str(canary)!r}, 'w').close()"
    command = f"touch {canary}"
    evil = pickle.dumps(Evil(os.system, command))
    yield "os.system", evil
    yield "protocol 0", pickle.dumps(Evil(os.system, command), protocol=0)
    yield "builtins.eval", pickle.dumps(Evil(eval, f"__import__('os').system({command!r})"))
    yield "builtins.exec", pickle.dumps(Evil(exec, touch))
    yield "inside a state", pickle.dumps({"G_ema": {"state": [Evil(os.system, command)]}})
    yield "open", pickle.dumps(Evil(open, str(canary), "w"))
    yield "pathlib", pickle.dumps(Evil(Path.touch, Path(canary)))
    yield "getattr", pickle.dumps(Evil(getattr, Evil(__import__, "os"), "system"))
    yield "nested pickle.loads", pickle.dumps(Evil(pickle.loads, evil))
    yield "nested torch storage", pickle.dumps(Evil(torch.storage._load_from_bytes, evil))
    old = io.BytesIO()
    torch.save(Evil(os.system, command), old, _use_new_zipfile_serialization=False)
    yield "nested torch file", pickle.dumps(Evil(torch.storage._load_from_bytes, old.getvalue()))
    new = io.BytesIO()
    torch.save(Evil(os.system, command), new)
    yield "nested torch zip", pickle.dumps(Evil(torch.storage._load_from_bytes, new.getvalue()))
    objects = np.empty(1, dtype=object)
    objects[0] = Evil(os.system, command)
    yield "numpy object array", pickle.dumps(objects)
    yield "dotted name", stack_global("torch._utils", "os.system", command)
    yield "dotted allowed name", stack_global("collections", "OrderedDict.__class__", command)
    yield "INST", f"(S'{command}'\nios\nsystem\n.".encode()
    yield "OBJ", f"(cos\nsystem\nS'{command}'\no.".encode()
    yield "EXT1", b"\x80\x02\x82\x01)R."
    yield "persistent id", b"\x80\x02X\x02\x00\x00\x00abQ."
    yield "source text", pickle.dumps(Evil(compile, touch, "x", "exec"))
    yield (
        "numpy scalar of objects",
        (
            b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93\x8c\x01O\x85R\x94"
            b"0\x8c\x16numpy.core.multiarray\x8c\x06scalar\x93h\x00C\x08AAAAAAAA\x86R."
        ),
    )
    yield (
        "change an allowed function",
        (  # BUILD on the stand-in for OrderedDict
            b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93N}\x8c\x09_functionK\x01s\x86b."
        ),
    )
    yield "memo bomb", b"\x80\x02]r\xff\xff\xff\x7f."
    yield "claims 2 GiB of bytes", b"\x80\x04B\xff\xff\xff\x7fabc."
    yield "claims 8 EiB of bytes", b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc."


NAMES = [name for name, _ in hostile_pickles("x")]


def test_the_canary_works(tmp_path):
    """The hostile pickles are really hostile: run by Python's own unpickler, one of them creates the file."""
    canary = tmp_path / "canary"
    pickle.loads(dict(hostile_pickles(canary))["os.system"])
    assert canary.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pt in a zip"])
def test_hostile_files_are_refused_and_nothing_is_executed(tmp_path, name, suffix):
    canary = tmp_path / "canary"
    content = dict(hostile_pickles(canary))[name]
    file = tmp_path / f"evil{suffix[:4].strip()}"
    if suffix.endswith("zip"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("evil/data.pkl", content)
            archive.writestr("evil/version", "3")
    else:
        file.write_bytes(content)
    with pytest.raises((HostileCheckpoint, DamagedFile), match=f"evil{suffix[:4].strip()}|nested storage"):
        weights.load_generator(file)
    assert not canary.exists()


def test_names_outside_the_allow_list_are_in_the_error(tmp_path):
    with pytest.raises(HostileCheckpoint, match=r"posix\.system.*nothing was executed"):
        weights.load_generator(in_place(pickle.dumps(Evil(os.system, "true")), tmp_path / "a.pkl"))


def test_source_text_in_a_network_is_never_run(tmp_path):
    """NVlabs' reader exec()s module_src; in the fixtures it contains a line that raises."""
    assert b"must never be executed" in NVLABS.read_bytes()
    canary = tmp_path / "canary"
    ops = [op.name for op, _, _ in pickletools.genops(NVLABS.read_bytes())]
    assert "STACK_GLOBAL" in ops
    line = "raise RuntimeError('source carried by a checkpoint must never be executed')"
    evil = f"open({str(canary)!r}, 'w')".ljust(len(line))[: len(line)]
    file = in_place(NVLABS.read_bytes().replace(line.encode(), evil.encode()), tmp_path / "a.pkl")
    weights.load_generator(file)
    assert not canary.exists()


def storage_pickle(numel, size, stride, offset=0):
    """A torch zip with one float tensor of the claimed geometry on 16 real bytes."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(obj, Storage) else None

    data = io.BytesIO()
    tensor = Evil(torch._utils._rebuild_tensor_v2, Storage(), offset, size, stride, False, collections.OrderedDict())
    Pickler(data, protocol=2).dump({"g_ema": {"a": tensor}})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", data.getvalue())
        archive.writestr("a/data/0", struct.pack("4f", 1, 2, 3, 4))
    return out.getvalue()


@pytest.mark.parametrize(
    "numel,size,stride,offset",
    [
        (4, (10**12,), (0,), 0),  # an expanded tensor of 4 TB
        (4, (5,), (1,), 0),
        (4, (2, 2), (3, 1), 0),
        (4, (2,), (1,), 3),
        (4, (2,), (1,), 10**15),
        (4, (2,), (-1,), 3),
        (4, (-2,), (1,), 0),
        (4, (2, 2), (1,), 0),
        (4, (2.0,), (1,), 0),
        (10**14, (4,), (1,), 0),
        (3, (3,), (1,), 0),
        (-1, (4,), (1,), 0),
    ],
)
def test_tensors_that_leave_their_bytes_are_refused(tmp_path, numel, size, stride, offset):
    file = in_place(storage_pickle(numel, size, stride, offset), tmp_path / "a.pt")
    with pytest.raises(DamagedFile):
        pickles.read(file, "torch")


def test_honest_tensor_of_the_same_form_is_read(tmp_path):
    file = in_place(storage_pickle(4, (2, 2), (1, 2)), tmp_path / "a.pt")
    assert pickles.read(file, "torch")["g_ema"]["a"].tolist() == [[1, 3], [2, 4]]


def test_compressed_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", bytes(10**7))
    with pytest.raises(HostileCheckpoint, match="compressed"):
        weights.load_generator(tmp_path / "a.pt")


def test_files_above_the_cap_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BYTES", 1000)
    with pytest.raises(DamagedFile, match="GiB"):
        weights.load_generator(NVLABS)


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [NVLABS, ROSINALITY])
def test_truncated_files_are_refused(tmp_path, source):
    content = source.read_bytes()
    file = tmp_path / source.name
    for fraction in (0, 1e-6, 0.001, 0.1, 0.5, 0.9, 0.999):
        with pytest.raises(DamagedFile, match=source.stem):
            weights.load_generator(in_place(content[: int(len(content) * fraction)], file))


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>Quota exceeded", b"\n <html>", b"\x00" * 1000, b"hello"]
)
def test_other_things_saved_as_checkpoints_are_refused(tmp_path, suffix, content):
    with pytest.raises(DamagedFile, match=f"model{suffix}"):
        weights.load_generator(in_place(content, tmp_path / f"model{suffix}"))


def test_flipped_bits_in_a_torch_zip_are_found(tmp_path):
    content = bytearray(ROSINALITY.read_bytes())
    content[len(content) // 2] ^= 1
    with pytest.raises(DamagedFile, match="CRC"):
        weights.load_generator(in_place(content, tmp_path / "a.pt"))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_random_damage_gives_a_weights_error_or_a_network(tmp_path_factory, data):
    source = data.draw(st.sampled_from([NVLABS, ROSINALITY]))
    content = bytearray(source.read_bytes())
    limit = data.draw(st.sampled_from([200, 20_000, len(content)]))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    file = in_place(content, tmp_path_factory.mktemp("damage") / source.name)
    with contextlib.suppress(WeightsError):
        weights.load_generator(file)
