"""hrlib.weights: the catalogue, verification, downloads from a local server that misbehaves, strict loading."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hrlib import nets, store, weights
from hrlib.errors import DamagedFile, LayoutMismatch, MissingWeights, StoreError, UnknownName, WeightsError
from hrlib.nets.stylegan2 import channel_plan
from hrlib.weights import download, files

PLAN = channel_plan(16, base=128, most=8)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return nets.build("stylegan2", dict(z_dim=8, w_dim=8, resolution=16, channels=PLAN, mapping_layers=2))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder in place of the repository's."""
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    monkeypatch.delenv("HRLIB_DATA", raising=False)
    store.write_json(tmp_path / "data" / "weights" / "catalogue.json", {})
    return tmp_path / "data"


def catalogued(data, name="thing", **fields):
    base = dict(
        kind="file", file=f"paper/{name}.bin", licence="CC0", origin="nowhere", profile="paper", prepare="Do it"
    )
    content = {**store.read_json(data / "weights" / "catalogue.json"), name: {**base, **fields}}
    store.write_json(data / "weights" / "catalogue.json", content)
    return data / content[name]["file"]


def digest(content):
    return hashlib.sha256(content).hexdigest()


# --- the shipped catalogue --------------------------------------------------------------------------------------------


def test_the_shipped_catalogue_is_complete_and_well_formed():
    entries = weights.catalogue()
    for name, e in entries.items():
        assert e.name == name and e.kind in ("network", "file", "dataset"), name
        assert e.profile in ("laptop", "ffhq", "paper"), name
        assert e.licence and e.origin and not os.path.isabs(e.file) and ".." not in e.file, name
        assert e.url is None or e.url.startswith("https://"), name
        assert e.sha256 is None or (len(e.sha256) == 64 and set(e.sha256) <= set("0123456789abcdef")), name
        assert e.kind != "dataset" or e.min_files > 0, name
        if e.profile == "laptop":
            assert e.sha256 and e.size and e.url is None, name
            assert weights.status(name) == "ok", name
            assert (files.DATA / "weights" / f"{name}.md").read_text().strip(), name
        else:
            assert e.url or e.prepare or (e.package and e.sha256), name
    assert len({e.file for e in entries.values()}) == len(entries)
    wanted = """ffhq celeba_hq disney caricature anime div2k stylegan2_ffhq stylegan2_ffhq_rosinality vgg16_imagenet
        alexnet_imagenet resnet50_imagenet deit_imagenet ir_se50 cips3d_ffhq dualstylegan_cartoon_generator
        starganv2_celeba_hq"""
    assert set(wanted.split()) <= set(entries)


def test_every_paper_entry_is_explained_in_the_readme():
    text = (files.DATA / "README.md").read_text()
    for name, e in weights.catalogue().items():
        if e.profile == "paper":
            assert f"`{name}`" in text and e.file.rpartition("/")[2] in text, name
    assert "LPIPS" in text


# --- path and status --------------------------------------------------------------------------------------------------


def test_missing_says_where_to_get_it_and_where_to_put_it(data):
    file = catalogued(data, url="https://example.org/thing.bin")
    with pytest.raises(MissingWeights) as e:
        weights.path("thing")
    for part in ("thing", "https://example.org/thing.bin", str(file), "CC0"):
        assert part in str(e.value)
    catalogued(data, "by-hand")
    with pytest.raises(MissingWeights, match="Do it"):
        weights.path("by-hand")
    assert weights.status("thing") == weights.status("by-hand") == "missing"


def test_wrong_names_and_paths(data, tmp_path):
    catalogued(data)
    with pytest.raises(UnknownName, match="did you mean 'thing'"):
        weights.path("thinq")
    with pytest.raises(MissingWeights, match=r"none\.pkl"):
        weights.path(tmp_path / "none.pkl")
    with pytest.raises(MissingWeights):
        weights.path("none.pkl")
    with pytest.raises(MissingWeights):
        weights.load_generator(str(tmp_path))


def test_hash_and_size_are_verified_by_name_and_by_path(data):
    content = b"right" * 100
    file = catalogued(data, sha256=digest(content), size=len(content))
    store.write_bytes(file, content)
    assert weights.path("thing") == file == weights.path(file) and weights.status("thing") == "ok"
    for bad, told in ((content[:-1], "499 bytes"), (b"wrong" * 100, digest(b"wrong" * 100))):
        store.write_bytes(file, bad)
        for name in ("thing", file):
            with pytest.raises(DamagedFile, match=told):
                weights.path(name)
        assert weights.status("thing") == "damaged"


def test_a_file_is_hashed_once_a_process(data, monkeypatch):
    file = catalogued(data, sha256=digest(b"once"))
    store.write_bytes(file, b"once")
    count = []
    real = store.sha256
    monkeypatch.setattr(store, "sha256", lambda f: count.append(f) or real(f))
    for _ in range(5):
        weights.path("thing")
    assert len(count) == 1
    store.write_bytes(file, b"evil")  # same size, later time
    with pytest.raises(DamagedFile):
        weights.path("thing")


def test_unknown_hash_is_pinned_on_first_use(data):
    file = catalogued(data)
    store.write_bytes(file, b"first")
    assert weights.status("thing") == "unverified" and not file.with_name("thing.bin.sha256").exists()
    assert weights.path("thing") == file
    assert file.with_name("thing.bin.sha256").read_text().strip() == digest(b"first")
    assert weights.status("thing") == "unverified"
    store.write_bytes(file, b"later")
    assert weights.status("thing") == "damaged"
    with pytest.raises(DamagedFile, match="first use"):
        weights.path("thing")


def test_datasets_are_counted(data):
    folder = catalogued(data, kind="dataset", file="paper/faces", min_files=3)
    assert weights.status("thing") == "missing"
    for i in range(3):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        assert weights.status("thing") == "damaged"
        Image.new("RGB", (2, 2)).save(folder / "sub" / f"{i}.png")
    assert weights.status("thing") == "ok" and weights.path("thing") == folder
    (folder / "sub" / "0.png").unlink()
    with pytest.raises(DamagedFile, match="2 pictures"):
        weights.path("thing")


def test_the_data_folder_of_downloads_can_be_elsewhere(data, tmp_path, monkeypatch):
    catalogued(data)
    catalogued(data, "shipped", profile="laptop", file="weights/shipped.bin")
    monkeypatch.setenv("HRLIB_DATA", str(tmp_path / "big disk"))
    assert weights.entry("thing").path == tmp_path / "big disk" / "paper" / "thing.bin"
    assert weights.entry("shipped").path == data / "weights" / "shipped.bin"


# --- downloads --------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 12_000  # 3 MB


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; `behave` on the server says how it misbehaves."""

    def do_GET(self):
        server = self.server
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        server.starts.append(start)
        behave = server.behave
        body = b"<!DOCTYPE html>quota exceeded" if "html" in behave else b"x" * 500 if "other" in behave else CONTENT
        if "404" in behave:
            self.send_error(404)
            return
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        partial = start and "no ranges" not in behave
        self.send_response(206 if partial else 200)
        self.send_header("Content-Type", "text/html" if behave == "html header" else "application/octet-stream")
        rest = body[start:] if partial else body
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if behave != "html without a length":
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if "drops" in behave:
            rest = rest[:1_200_000]
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.behave, httpd.starts = "", []
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/thing.bin"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_download_is_verified_and_whole(data, server):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT), size=len(CONTENT))
    assert weights.fetch("thing") == file and file.read_bytes() == CONTENT
    assert [f.name for f in file.parent.iterdir()] == ["thing.bin"]
    weights.fetch("thing")
    assert server.starts == [0]  # what is there is not fetched again


def test_dropped_connections_are_resumed(data, server):
    server.behave = "drops after 1.2 MB"
    file = catalogued(data, url=server.url, sha256=digest(CONTENT), size=len(CONTENT))
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT and len(server.starts) == 3
    assert server.starts[1] > 1_100_000 and server.starts[2] > server.starts[1] + 1_100_000


def test_an_interrupted_download_is_resumed_next_time(data, server):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    store.write_bytes(file.with_name("thing.bin.part"), CONTENT[:2_000_000])
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT and server.starts == [2_000_000]
    assert not file.with_name("thing.bin.part").exists()


def test_a_whole_part_needs_no_more_bytes(data, server):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    store.write_bytes(file.with_name("thing.bin.part"), CONTENT)
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_deleted(data, server):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    store.write_bytes(file.with_name("thing.bin.part"), CONTENT + b"more")
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(data, server):
    server.behave = "no ranges"
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    store.write_bytes(file.with_name("thing.bin.part"), b"z" * 1000)
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT


def test_without_a_hash_no_two_versions_are_joined(data, server):
    file = catalogued(data, url=server.url)
    store.write_bytes(file.with_name("thing.bin.part"), b"z" * 1000)
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT and server.starts == [0]
    assert file.with_name("thing.bin.sha256").read_text().strip() == digest(CONTENT)


@pytest.mark.parametrize("behave", ["html header", "html", "html without a length"])
def test_web_pages_are_refused(data, server, behave):
    server.behave = behave
    file = catalogued(data, url=server.url)
    with pytest.raises(DamagedFile, match="web page"):
        weights.fetch("thing")
    assert not file.exists()


def test_wrong_files_are_refused(data, server):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    server.behave = "other"
    with pytest.raises(DamagedFile, match="browser"):
        weights.fetch("thing")
    assert not list(file.parent.iterdir())
    catalogued(data, url=server.url, sha256=digest(CONTENT), size=len(CONTENT))
    with pytest.raises(DamagedFile, match="500 bytes"):
        weights.fetch("thing")
    server.behave = ""
    weights.fetch("thing")
    assert file.read_bytes() == CONTENT


def test_offline_and_dead_links_say_what_to_do(data, server, monkeypatch):
    file = catalogued(data, url=server.url)
    server.behave = "404"
    with pytest.raises(MissingWeights, match="404"):
        weights.fetch("thing")
    catalogued(data, url="http://127.0.0.1:9/thing.bin")
    with pytest.raises(MissingWeights) as e:
        weights.fetch("thing")
    assert "network" in str(e.value) and str(file) in str(e.value)
    catalogued(data, "by-hand")
    with pytest.raises(MissingWeights, match="no direct link"):
        weights.fetch("by-hand")


def test_a_connection_that_always_drops_ends(data, server, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.behave = "drops after 1.2 MB"
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    with pytest.raises(MissingWeights, match="cannot download"):
        weights.fetch("thing")
    assert file.with_name("thing.bin.part").stat().st_size > 2_200_000
    weights.fetch("thing")  # and goes on
    assert file.read_bytes() == CONTENT


def test_a_download_never_replaces_an_existing_file(data, server, tmp_path):
    file = catalogued(data, url=server.url, sha256=digest(CONTENT))
    store.write_bytes(file, b"the user's own")
    with pytest.raises(DamagedFile, match="hrlab fetch thing"):
        weights.fetch("thing")
    with pytest.raises(StoreError, match="there already"):
        download.download(server.url, file, sha256=None, size=None, by_hand="")
    assert file.read_bytes() == b"the user's own" and server.starts == []
    file.unlink()
    file.symlink_to(tmp_path / "a disk that is not there")
    with pytest.raises(MissingWeights):
        weights.fetch("thing")
    assert file.is_symlink() and server.starts == []


def test_a_cached_result_is_computed_again_when_its_file_changes(tmp_path, monkeypatch):
    @weights.cached(4)
    def content(name, *, more=""):
        return object()

    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        store.write_bytes(Path(folder) / "g.bin", folder.encode())
    first, catalogued_one = content("a/g.bin"), content("some_name")
    assert content("a/g.bin") is first and content("file:a/g.bin") is not first
    stat = Path("a/g.bin").stat()
    store.write_bytes("a/g.bin", b"c")  # of the same size
    os.utime("a/g.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and of the same time
    assert content("a/g.bin") is not first and content("some_name") is catalogued_one
    monkeypatch.chdir("a")
    here = content("g.bin")
    monkeypatch.chdir("../b")
    assert content("g.bin") is not here and content("x", more="g.bin") is content("x", more="g.bin")


def test_files_are_saved_under_a_name_that_can_be_read_and_never_over_another(tmp_path, generator):
    file = weights.save_network(generator, tmp_path / "lr_0.1")
    assert file.name == "lr_0.1.safetensors" and weights.load_generator(file).config == generator.config
    before = file.read_bytes()
    with pytest.raises(StoreError, match="--force"):
        weights.save_state({"a": torch.zeros(2)}, tmp_path / "lr_0.1")
    assert file.read_bytes() == before
    assert weights.save_state({"a": torch.zeros(2)}, file, force=True) == file and file.read_bytes() != before


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_networks_round_trip(tmp_path, generator):
    file = weights.save_network(generator, tmp_path / "g.safetensors", card="made here")
    again = weights.load_generator(file)
    assert again.config == generator.config and not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in generator.state_dict().items())
    state, metadata = weights.load_state(file)
    assert metadata["architecture"] == "stylegan2" and metadata["card"] == "made here"
    assert json.loads(metadata["config"])["resolution"] == 16 and set(state) == set(generator.state_dict())


GENERATOR = dict(resolution=16, channels=PLAN, z_dim=8, w_dim=8)
MOBILE = dict(resolution=16, channels={4: 8, 8: 8}, z_dim=8, w_dim=8)
ROUND_TRIPS = {  # architecture: a small configuration, who loads it, who must refuse it
    "stylegan2": (GENERATOR, weights.load_generator, weights.load_discriminator),
    "style_inr": (GENERATOR, weights.load_generator, weights.load_discriminator),
    "mobile_stylegan": (MOBILE, weights.load_generator, weights.load_discriminator),
    "mobile_inr": (MOBILE, weights.load_generator, weights.load_discriminator),
    "stylegan2_discriminator": (
        dict(resolution=16, channels=PLAN),
        weights.load_discriminator,
        weights.load_generator,
    ),
    "identity": (dict(edge=16, channels=(8, 8, 8), dim=8), weights.load_identity, weights.load_generator),
    "ir_se": (
        dict(channels=[16, 32, 48, 64], units=[1, 1, 1, 1], dim=8, bgr=True),
        weights.load_identity,
        weights.load_stylist,
    ),
    "dualstylegan": (dict(generator=GENERATOR, res_index=2), weights.load_stylist, weights.load_generator),
    "starganv2": (
        dict(img_size=32, style_dim=4, latent_dim=4, max_conv_dim=8, w_hpf=1.0, hidden=8, width=4, domains=["a", "b"]),
        weights.load_stylist,
        weights.load_identity,
    ),
    "cips3d": (
        dict(z_dim=8, z_dim_inr=8, nerf_hidden=8, rgb_dim=8, nerf_style=8, inr_hidden=8, inr_style=8, inr_blocks=4),
        weights.load_generator3d,
        weights.load_generator,
    ),
}


@pytest.mark.parametrize("name", sorted(nets.ARCHITECTURES))
def test_every_architecture_round_trips(tmp_path, name):
    config, load, other = ROUND_TRIPS[name]
    net = nets.build(name, config)
    file = weights.save_network(net, tmp_path / "n.safetensors")
    assert all(torch.equal(v, load(file).state_dict()[k]) for k, v in net.state_dict().items())
    with pytest.raises(LayoutMismatch, match=name):
        other(file)


def test_loading_leaves_the_random_numbers_alone(tmp_path, generator):
    file = weights.save_network(generator, tmp_path / "g.safetensors")
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    weights.load_generator(file)
    assert torch.equal(torch.randn(3), expected)


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, generator):
    whole = weights.save_network(generator, tmp_path / "a.safetensors").stat().st_size
    file = weights.save_network(generator, tmp_path / "b.safetensors", half=True)
    again = weights.load_generator(file)
    assert file.stat().st_size < 0.75 * whole
    for key, value in generator.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_non_finite_weights_are_not_saved(tmp_path, generator):
    with torch.no_grad():
        generator.w_avg[0] = float("nan")
    with pytest.raises(WeightsError, match=r"mapping\.w_avg"):
        weights.save_network(generator, tmp_path / "g.safetensors")
    with pytest.raises(WeightsError, match="Linear"):
        weights.save_network(torch.nn.Linear(2, 2), tmp_path / "g.safetensors")
    assert not list(tmp_path.iterdir())


def test_keys_and_shapes_are_strict(tmp_path, generator):
    state = generator.state_dict()
    metadata = {"architecture": "stylegan2", "config": json.dumps(generator.config), "card": ""}
    del state["mapping.fc0.bias"]
    state["extra"] = torch.zeros(1)
    state["synthesis.b4.const"] = torch.zeros(3, 4, 4)
    file = weights.save_state(state, tmp_path / "g.safetensors", metadata)
    with pytest.raises(LayoutMismatch) as e:
        weights.load_generator(file)
    for part in ("1 missing: mapping.fc0.bias", "1 unexpected: extra", "synthesis.b4.const [3, 4, 4] for [8, 4, 4]"):
        assert part in str(e.value)


@pytest.mark.parametrize(
    "change",
    [
        {"config": '{"resolution": 16}'},
        {"config": "not json"},
        {"config": '{"z_dim": 8, "w_dim": 8, "resolution": 17, "channels": {}}'},
        {"config": '{"z_dim": 8, "w_dim": 8, "resolution": 16, "channels": {"4": 1000000000000}}'},
        {"config": '{"z_dim": 8, "w_dim": 1000000000, "resolution": 16, "channels": {"4": 8, "8": 8, "16": 8}}'},
        {"config": "[]"},
        {"architecture": "resnet9000"},
        {"architecture": None},
    ],
)
def test_lying_metadata_is_refused_before_memory_is_taken(tmp_path, generator, change):
    metadata = {"architecture": "stylegan2", "config": json.dumps(generator.config), "card": "", **change}
    metadata = {k: v for k, v in metadata.items() if v is not None}
    file = weights.save_state(generator.state_dict(), tmp_path / "g.safetensors", metadata)
    with pytest.raises(LayoutMismatch):
        weights.load_generator(file)


def test_truncated_safetensors_are_refused(tmp_path, generator):
    content = weights.save_network(generator, tmp_path / "g.safetensors").read_bytes()
    for cut in (0, 4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "g.safetensors").write_bytes(content[:cut])
        with pytest.raises(DamagedFile, match=r"g\.safetensors"):
            weights.load_generator(tmp_path / "g.safetensors")


def test_plain_state_dicts_of_torch_are_read(tmp_path):
    torch.save({"features.0.weight": torch.ones(2).half()}, tmp_path / "vgg.pth")
    state, metadata = weights.load_state(tmp_path / "vgg.pth")
    assert state["features.0.weight"].dtype == torch.float32 and metadata == {}
    torch.save({"a": {"b": torch.ones(2)}}, tmp_path / "nested.pth")
    with pytest.raises(LayoutMismatch, match="more than one"):
        weights.load_state(tmp_path / "nested.pth")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(LayoutMismatch, match="suffix"):
        weights.load_state(tmp_path / "a.zip")


def test_files_without_our_metadata_are_refused_as_networks(tmp_path, generator):
    save_file(generator.state_dict(), tmp_path / "g.safetensors")
    with pytest.raises(LayoutMismatch, match="which network"):
        weights.load_generator(tmp_path / "g.safetensors")


def test_register_makes_a_verified_entry_with_a_card(data, generator):
    file = weights.save_network(generator, data / "weights" / "tiny.safetensors", card="test")
    catalogued(data, "other")
    entry = weights.register("tiny", file, card="# Tiny\n\nTrained on nothing.")
    assert entry.sha256 == digest(file.read_bytes()) and entry.architecture == "stylegan2"
    assert weights.status("tiny") == "ok" and weights.load_generator("tiny").resolution == 16
    assert (data / "weights" / "tiny.md").read_text() == "# Tiny\n\nTrained on nothing.\n"
    assert set(weights.catalogue()) == {"other", "tiny"}
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # safetensors itself does not notice a flipped bit
    file.write_bytes(content)
    with pytest.raises(DamagedFile, match="SHA-256"):
        weights.load_generator("tiny")
    assert weights.register("tiny", file, card="# Tiny, trained anew").sha256 == digest(bytes(content))
    assert weights.load_generator("tiny").resolution == 16
    with pytest.raises(WeightsError, match="outside"):
        weights.register("x", data.parent / "x.safetensors", card="")
