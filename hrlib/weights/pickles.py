"""Read untrusted pickles and torch files without executing anything in them.

A pickle is a program that may call any importable function. Here an allow-list (`ALLOWED`) stands between that program
and Python: any other name stops the reading with `HostileCheckpoint` before anything is called, and the allowed names
refer to inert stand-ins of our own, never to the real functions. NVlabs' own reader exec()s source text from the file
to build its network classes; here they become plain `Record`s. Tensors are rebuilt from raw bytes, and every size is
checked against the bytes present.

Why not a library: torch.load(weights_only=True) has been bypassed twice and cannot read NVlabs' files. picklescan and
fickling only judge a pickle; another reader would then load it, and might understand it differently from the scanner.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..errors import DamagedFile, HostileCheckpoint, LayoutMismatch, WeightsError

MAX_BYTES = 8 << 30  # the largest file in the catalogue has 0.4 GiB
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first object in torch's format before 1.6
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Opcodes that no checkpoint needs and that would widen the attack surface.
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"}


@dataclass(frozen=True, slots=True)
class Record:
    """A network object of an NVlabs pickle as plain data: the name of its class and its attributes."""

    class_name: str
    state: dict[str, Any]


class Namespace:
    """Stands in for argparse.Namespace; `values` holds the training options as a plain dict."""

    __slots__ = ("values",)

    def __setstate__(self, state: dict) -> None:
        self.values = state


class _Ordered(dict):
    """Stands in for OrderedDict; ignores the attribute (`_metadata`) that torch adds to state dicts."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Sealed:
    """An object whose attributes a pickle cannot change (opcode BUILD)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"an attempt to change a {type(self).__name__}")


class _Storage(_Sealed):
    """A flat run of numbers of one dtype, `tensor` [numel]."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class _Dtype:
    """Stands in for numpy.dtype; numeric types only, never objects."""

    __slots__ = ("dtype",)

    def __setstate__(self, state: tuple) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _ObjectDtype(_Dtype):
    """Stands in for numpy's object type; its pickled state does not matter."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray; `value` is an array of numbers, or the single object of a 0-d array."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Dtype) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array without a dtype or with an impossible shape")
        if kind.dtype is None:
            if shape != () or not isinstance(data, list) or len(data) != 1:
                raise ValueError("an array of more than one object")
            self.value = data[0]
            return
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise ValueError("an array whose data does not match its shape")
        self.value = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


class _Call(_Sealed):
    """A stand-in for an allowed function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)


def _record(meta: dict) -> Record:
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise ValueError("a persistent object that is not a class")
    return Record(str(meta["class_name"]), meta["state"])  # the source text, meta["module_src"], is dropped


def _dtype(code: str, align: bool = False, copy: bool = False) -> _Dtype:
    if not isinstance(code, str) or not re.fullmatch("[biuf][1248]", code):
        raise HostileCheckpoint(
            f"the pickle requests the numpy type {code!r}",
            expected="a numeric type",
            do="do not open this file with other tools; get it from its authors again",
        )
    out = _Dtype()
    out.dtype = np.dtype(code)
    return out


def _scalar(kind: _Dtype, data: bytes) -> float | int | bool:
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise ValueError("a numpy scalar of the wrong size")
    return np.frombuffer(data, kind.dtype)[0].item()


def _latin(text: str, encoding: str) -> bytes:
    """Bytes as pickle protocol 2 encodes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an encoding other than latin1")
    return text.encode("latin1")


def _tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: object) -> torch.Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor without a storage or with impossible sizes")
    if len(size) != len(stride):
        raise ValueError(f"a tensor with {len(size)} sizes and {len(stride)} strides")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    if count > len(storage.tensor) or (count and last >= len(storage.tensor)):
        raise ValueError(f"a tensor of {count} elements in a storage of {len(storage.tensor)}")
    return storage.tensor.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def _parameter(data: torch.Tensor, *_: object) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise ValueError("a parameter that is not a tensor")
    return data


def _nested_storage(data: bytes) -> _Storage:
    if not isinstance(data, bytes):
        raise ValueError("a nested storage that is not bytes")
    out = _read_legacy(io.BytesIO(data), "a nested storage")
    if not isinstance(out, _Storage):
        raise ValueError("a nested storage of the wrong type")
    return out


def _object_dtype(code: str, *options: object) -> _Dtype:
    """As `_dtype`, and also the object type, whose arrays `_Array` restricts."""
    if code not in ("O", "O8"):
        return _dtype(code)
    out = _ObjectDtype()
    out.dtype = None
    return out


def _array(kind: object, shape: tuple, code: object) -> _Array:
    if kind is not _Array:
        raise ValueError("an array of a class other than numpy.ndarray")
    return _Array()


_COMMON: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Call(_Ordered),
    ("builtins", "set"): _Call(set),
    ("__builtin__", "set"): _Call(set),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_parameter),
    ("_codecs", "encode"): _Call(_latin),
    ("numpy", "dtype"): _Call(_dtype),
    ("numpy.core.multiarray", "scalar"): _Call(_scalar),
    ("numpy._core.multiarray", "scalar"): _Call(_scalar),
    ("argparse", "Namespace"): Namespace,
}
ALLOWED: dict[str, dict[tuple[str, str], Any]] = {
    "nvlabs": {
        **_COMMON,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Call(_record),
        ("dnnlib.util", "EasyDict"): dict,  # a built-in type: a pickle cannot change its attributes
        ("torch.storage", "_load_from_bytes"): _Call(_nested_storage),
    },
    "torch": {**_COMMON, **{("torch", name): dtype for name, dtype in _DTYPES.items()}},
    "npy": {
        **_COMMON,
        ("numpy", "dtype"): _Call(_object_dtype),
        ("numpy", "ndarray"): _Array,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Call(_array) for core in ("core", "_core")},
    },
}


class _Reader(pickle.Unpickler):
    """An unpickler that resolves only the names in `allowed`."""

    def __init__(self, file: BinaryIO, allowed: dict, name: str, storage: Callable[[Any], _Storage] | None) -> None:
        super().__init__(file)
        self._allowed, self._name, self._find_storage = allowed, name, storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("dnnlib.tflib"):
            raise LayoutMismatch(
                f"{self._name} is a TensorFlow pickle of StyleGAN or StyleGAN2 (it requests {module}.{name})",
                expected="a pickle written by stylegan2-ada-pytorch, or a rosinality .pt",
                do="convert it with NVlabs' stylegan2-ada-pytorch: python legacy.py --source=OLD.pkl --dest=NEW.pkl",
            )
        if (module, name) not in self._allowed:
            raise HostileCheckpoint(
                f"{self._name} requests {module}.{name}, which no checkpoint needs; nothing was executed",
                expected="only " + ", ".join(sorted(f"{m}.{n}" for m, n in self._allowed)),
                do="do not open this file with other tools; get it from its authors again",
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if self._find_storage is None:
            raise pickle.UnpicklingError("an unexpected persistent id")
        return self._find_storage(pid)


def _scan(file: BinaryIO, name: str) -> None:
    """Check the next pickle's opcodes without running them, and leave the file position unchanged.

    Refuses opcodes that checkpoints do not use, and memo indices that would make the unpickler allocate gigabytes.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        bomb = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > count + 256
        if opcode.name in _REFUSED_OPCODES or bomb:
            raise HostileCheckpoint(
                f"{name} uses the pickle opcode {opcode.name} ({str(argument)[:40]}); nothing was executed",
                expected="the opcodes that torch and NVlabs write",
                do="do not open this file with other tools; get it from its authors again",
            )
    file.seek(start)


def _load(file: BinaryIO, kind: str, name: str, storage: Callable[[Any], _Storage] | None = None) -> Any:
    _scan(file, name)
    return _Reader(file, ALLOWED[kind], name, storage).load()


def _dtype_of_storage(pid: Any) -> tuple[torch.dtype, str, int]:
    """(dtype, key, numel) from a torch persistent id ("storage", type, key, location, numel[, view])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or (len(pid) == 6 and pid[5]):
        raise pickle.UnpicklingError("a persistent id that is not a storage")
    dtype, key, numel = pid[1], pid[2], pid[4]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise pickle.UnpicklingError("a malformed storage")
    return dtype, key, numel


def _numbers(data: bytes, dtype: torch.dtype, numel: int) -> torch.Tensor:
    if len(data) != numel * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {numel} numbers of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def _read_legacy(file: BinaryIO, name: str) -> Any:
    """torch's format before 1.6, also of the storages inside NVlabs pickles: four pickles, keys, then raw numbers."""
    if _load(file, "torch", name) != _LEGACY_MAGIC or _load(file, "torch", name) != 1001:
        raise ValueError("not a torch file")
    if not _load(file, "torch", name).get("little_endian", True):
        raise ValueError("numbers in big-endian order")
    begin = file.tell()
    kinds: dict[str, tuple[torch.dtype, int]] = {}
    storages: dict[str, _Storage] = {}

    def declare(pid: Any) -> _Storage:
        dtype, key, numel = _dtype_of_storage(pid)
        if kinds.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise ValueError(f"storage {key!r} claimed twice with different types")
        return storages.setdefault(key, _Storage(torch.empty(0, dtype=dtype)))

    # Tensors are built while the pickle runs, but their numbers follow it: run it once with empty storages to find its
    # end, fill the storages, then run it again.
    skeleton = dict(ALLOWED["torch"])
    skeleton["torch._utils", "_rebuild_tensor_v2"] = skeleton["torch._utils", "_rebuild_parameter"] = _Call(_nothing)
    _scan(file, name)
    _Reader(file, skeleton, name, declare).load()
    for key in _load(file, "torch", name):
        dtype, numel = kinds[key]
        if struct.unpack("<q", file.read(8)) != (numel,):
            raise ValueError(f"storage {key!r} of an unexpected size")
        storages[key].tensor = _numbers(file.read(numel * dtype.itemsize), dtype, numel)
    file.seek(begin)
    return _load(file, "torch", name, declare)


def _nothing(*_: object) -> None:
    return None


def _read_zip(file: BinaryIO, name: str) -> Any:
    """torch's format since 1.6: an uncompressed zip of data.pkl and one file of raw numbers per storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(roots) != 1 or len(entries) != len(archive.infolist()):
            raise ValueError("a zip without exactly one data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise HostileCheckpoint(
                f"{name} has compressed entries, which torch never writes; nothing was executed",
                expected="an uncompressed torch file",
                do="get the file from its authors again",
            )
        root = roots[0]
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("numbers in big-endian order")
        storages: dict[str, _Storage] = {}

        def fetch(pid: Any) -> _Storage:
            dtype, key, numel = _dtype_of_storage(pid)
            if key not in storages:
                storages[key] = _Storage(_numbers(archive.read(f"{root}data/{key}"), dtype, numel))
            if storages[key].tensor.dtype != dtype:
                raise ValueError(f"storage {key!r} claimed twice with different types")
            return storages[key]

        return _load(io.BytesIO(archive.read(f"{root}data.pkl")), "torch", name, fetch)


def _read_npy(file: BinaryIO, name: str) -> Any:
    """A numpy file that holds a single pickled object, such as a dict of arrays."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if shape != () or dtype != np.dtype(object):
        raise LayoutMismatch(
            f"{name} holds an array {shape} of {dtype}", expected="one pickled object", do="read it with numpy.load"
        )
    array = _load(file, "npy", name)
    if not isinstance(array, _Array):
        raise ValueError("an object that is not an array")
    return array.value


def read(path: str | os.PathLike, kind: str) -> Any:
    """The object in a file: plain containers of tensors, or ("npy") of stand-ins whose `value` is an array.

    kind: "nvlabs" (.pkl), "torch" (.pt, .pth, .ckpt) or "npy" (.npy).

    Raises:
        HostileCheckpoint: a name or opcode outside the allow-list; nothing was executed.
        DamagedFile: the file is empty, truncated, a web page, or not of this kind.
        LayoutMismatch: a TensorFlow pickle, or a .npy file of plain numbers.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DamagedFile(
            f"{path} has {size / 2**30:.1f} GiB",
            expected=f"a checkpoint of at most {MAX_BYTES / 2**30:.0f} GiB",
            do="check that this is the right file",
        )
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.lstrip()[:1] == b"<":
            raise DamagedFile(
                f"{path} is a web page, not a checkpoint (it starts with {head.lstrip()[:30]!r})",
                expected="a binary file",
                do="download it in a browser: the link has expired or needs a log-in",
            )
        try:
            if kind == "npy":
                return _read_npy(io.BytesIO(file.read()), str(path))
            if head[:4] == b"PK\3\4":
                return _read_zip(file, str(path))
            if head[:1] != pickle.PROTO:
                raise ValueError(f"it starts with {head[:12]!r}, unlike any pickle")
            # A memory map never reads past its end, whatever length a pickle claims.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_legacy(data, str(path)) if kind == "torch" else _load(data, "nvlabs", str(path))
        except WeightsError:
            raise
        except Exception as e:  # a damaged pickle can fail in any way
            raise DamagedFile(
                f"{path} is empty, truncated, damaged or not a checkpoint ({type(e).__name__}: {e})",
                expected={"nvlabs": "a complete NVlabs .pkl", "npy": "a complete .npy file"}.get(
                    kind, "a complete torch file"
                ),
                do="download or copy it again, and compare its size with the original's",
            ) from e
