"""A stand-in for cupy that computes with numpy: the GPU backend's logic runs on it where there is no GPU.

Arrays of the "device" are a type of their own, and the stand-in's functions refuse numpy's, as cupy's do. The bodies of
`ElementwiseKernel`s, which are C++ on a GPU too, are compiled by the machine's C++ compiler and run element by element.
What it cannot show: cupy's own functions, rounding, streams, memory. `pytest tests/gpu` is for those.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.machinery
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from nbflow.backends import available
from nbflow.backends import cupy as backend
from nbflow.spec import is_half

COMPILER = shutil.which("g++") or shutil.which("c++")
MEMORY_BYTES = 2**30


class DeviceArray(np.ndarray[Any, Any]):
    """An array of the stand-in. numpy's functions on it are refused where another array is numpy's."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _call(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _call(func, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(self.view(np.ndarray)[_unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.view(np.ndarray)[_unwrapped(key)] = _unwrapped(value)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion to a numpy array is not allowed")

    def get(self, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        found = self.view(np.ndarray)
        if out is None:
            return found.copy()
        out[...] = found
        return out


def _unwrapped(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_unwrapped, value))
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(DeviceArray)
    if isinstance(value, (tuple, list)):
        return tuple(map(_wrapped, value))
    return value


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    out = kwargs.get("out")
    made = function(*_unwrapped(tuple(args)), **{k: _unwrapped(v) for k, v in kwargs.items()})
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return _wrapped(made)


class _Functions(ModuleType):
    """numpy's functions, on arrays of the stand-in. What cupy lacks must not be asked for by the backend."""

    def __init__(self, name: str, source: Any, **own: Any) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__path__: list[str] = []
        self._source = source
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._source, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: _call(found, args, kwargs)


# --- kernels ---------------------------------------------------------------------------------------------------------

_C_TYPES = {
    "?": "bool", "b": "signed char", "B": "unsigned char", "h": "short", "H": "unsigned short", "i": "int",
    "I": "unsigned int", "l": "long long", "L": "unsigned long long", "q": "long long", "Q": "unsigned long long",
    "f": "float", "d": "double", "F": "std::complex<float>", "D": "std::complex<double>",
}  # fmt: skip
_PRELUDE = """#include <cmath>
#include <complex>
using namespace std;
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
"""


class ElementwiseKernel:
    """cupy's, in so far as the backend uses it: scalars have fixed types, and a type's letter comes from an array."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        self.inputs, self.outputs = _params(in_params), _params(out_params)
        self.operation, self.name = operation, name

    def __call__(self, *args: Any, size: int | None = None) -> Any:
        params = [*self.inputs, *self.outputs]
        given = list(args) + [None] * (len(params) - len(args))
        types: dict[str, np.dtype[Any]] = {}
        for (_, letter, _), value in zip(params, given, strict=True):
            if letter.isupper() and isinstance(value, np.ndarray):
                assert types.setdefault(letter, value.dtype) == value.dtype, f"{self.name}: two types for {letter}"
        whole = [n for (raw, _, n), v in zip(params, given, strict=True) if isinstance(v, np.ndarray) and not raw]
        assert size is None or not whole, f"{self.name}: `size` goes with raw arrays only, {whole} are not"
        arrays = [v for (raw, _, _), v in zip(params, given, strict=True) if isinstance(v, np.ndarray) and not raw]
        shape = (size,) if size is not None else np.broadcast_shapes(*[a.shape for a in arrays])
        for n, (_, letter, _) in enumerate(params):
            if given[n] is None:
                given[n] = np.empty(shape, types.get(letter) or np.dtype(letter)).view(DeviceArray)
        self._run(params, given, types, shape)
        made = given[len(self.inputs) :]
        return made[0] if len(made) == 1 else tuple(made)

    def _run(self, params: Sequence[Any], given: Sequence[Any], types: dict[str, Any], shape: Any) -> None:
        hosts, back = [], []
        for n, ((raw, letter, _), value) in enumerate(zip(params, given, strict=True)):
            dtype = types.get(letter) or np.dtype(letter)
            assert isinstance(value, DeviceArray) or np.ndim(value) == 0, f"{self.name}: a numpy array"
            plain = np.asarray(_unwrapped(value) if isinstance(value, DeviceArray) else np.array(value, dtype))
            if letter.islower() and isinstance(value, DeviceArray):
                assert plain.dtype == dtype, f"{self.name} takes {dtype}, got {plain.dtype}"
            wide = plain.astype(np.float32) if is_half(plain.dtype) else plain
            host = np.ascontiguousarray(wide if raw else np.broadcast_to(wide, shape))
            if n >= len(self.inputs) and np.shares_memory(host, plain):
                host = host.copy()
            hosts.append(host)
            if n >= len(self.inputs):
                back.append((plain, host))
        codes = tuple("f" if h.dtype.itemsize == 2 and h.dtype.kind not in "iu" else h.dtype.char for h in hosts)
        letters = tuple(sorted((k, "f" if is_half(v) else v.char) for k, v in types.items()))
        function = _compiled(self.operation, tuple(params), codes, letters)
        function(ctypes.c_longlong(math.prod(shape)), *[ctypes.c_void_p(h.ctypes.data) for h in hosts])
        for plain, host in back:
            plain[...] = host.reshape(plain.shape).astype(plain.dtype)


def _params(text: str) -> list[tuple[bool, str, str]]:
    """(raw, type, name) of each parameter."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        *raw, letter, name = part.split()
        found.append((raw == ["raw"], letter, name))
    return found


@functools.cache
def _compiled(operation: str, params: Any, codes: tuple[str, ...], letters: Any) -> Any:
    names = [f"{_C_TYPES[c]}* p{n}" for n, c in enumerate(codes)]
    uses = "\n".join(
        f"auto* {name} = p{n};" if raw else f"auto& {name} = p{n}[i];" for n, (raw, _, name) in enumerate(params)
    )
    typedefs = "\n".join(f"typedef {_C_TYPES[c]} {letter};" for letter, c in letters)
    source = (
        f'{_PRELUDE}\nextern "C" void run(long long _n, {", ".join(names)}) {{\n{typedefs}\n'
        f"for (long long i = 0; i < _n; ++i) {{\n{uses}\n{operation};\n}}}}\n"
    )
    assert COMPILER is not None, "the stand-in needs a C++ compiler"
    name = hashlib.sha256(source.encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / "nbflow-stand-in"
    folder.mkdir(exist_ok=True)
    library = folder / f"{name}.so"
    if not library.exists():
        (folder / f"{name}.cpp").write_text(source)
        made = folder / f"{name}.so.new"
        told = subprocess.run(
            [COMPILER, "-shared", "-fPIC", "-O1", "-ffp-contract=off", "-o", made, folder / f"{name}.cpp"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        made.rename(library)
    return ctypes.CDLL(str(library)).run


# --- the modules -----------------------------------------------------------------------------------------------------


class _Device:
    def __init__(self, index: int = 0) -> None:
        self.id = index

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class _Stream:
    def __init__(self, non_blocking: bool = False) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...
    def synchronize(self) -> None: ...


class CUDARuntimeError(RuntimeError):
    pass


def _asarray(value: Any, dtype: Any = None, order: Any = None) -> DeviceArray:
    plain = value.view(np.ndarray) if isinstance(value, DeviceArray) else np.asarray(value)
    found = np.array(plain, dtype, order=order or "K", copy=None if isinstance(value, DeviceArray) else True)
    return found.view(DeviceArray)


def _array(value: Any, dtype: Any = None, order: Any = None) -> DeviceArray:
    plain = value.view(np.ndarray) if isinstance(value, DeviceArray) else np.asarray(value)
    return np.array(plain, dtype, order=order or "K", copy=True).view(DeviceArray)


def _take(x: Any, indices: Any, axis: Any = None) -> Any:
    return _wrapped(np.take(_unwrapped(x), _unwrapped(indices), axis, mode="wrap"))


def _sort(x: Any, axis: int = -1, kind: Any = None) -> Any:
    return _wrapped(np.sort(_unwrapped(x), axis, kind="stable"))


def _erf(x: Any, out: Any = None) -> Any:
    made = np.vectorize(math.erf, otypes=[np.float64])(_unwrapped(x)).astype(x.dtype)
    if out is None:
        return _wrapped(made)
    out[...] = _wrapped(made)
    return out


def _lu(function: Any) -> Any:
    return lambda *args, **kwargs: _call(function, args, kwargs)


def _pinv(x: Any, rcond: Any) -> Any:
    return _wrapped(np.linalg.pinv(_unwrapped(x), rtol=rcond))


def modules() -> dict[str, ModuleType]:
    """`cupy` and `cupyx` of the stand-in, by name."""
    properties = {"name": b"stand-in", "multiProcessorCount": 1, "clockRate": 1000, "totalGlobalMem": MEMORY_BYTES}
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda index: properties,
    )
    cuda = SimpleNamespace(runtime=runtime, Device=_Device, Stream=_Stream)
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    lib = SimpleNamespace(
        stride_tricks=SimpleNamespace(
            as_strided=lambda x, shape, strides: _wrapped(
                np.lib.stride_tricks.as_strided(x.view(np.ndarray), shape, strides)
            )
        )
    )
    cp = _Functions(
        "cupy", np,
        ndarray=DeviceArray, cuda=cuda, ElementwiseKernel=ElementwiseKernel, asarray=_asarray, array=_array,
        asnumpy=lambda x: _unwrapped(x).copy() if isinstance(x, DeviceArray) else np.asarray(x), take=_take, sort=_sort,
        get_default_memory_pool=lambda: pool, lib=lib, fft=_Functions("cupy.fft", np.fft),
        linalg=_Functions("cupy.linalg", np.linalg, pinv=_pinv),
    )  # fmt: skip
    special = _Functions("cupyx.scipy.special", None, erf=_erf)
    scipy = _Functions("cupyx.scipy", None, special=special)
    cupyx = _Functions("cupyx", None, scipy=scipy, empty_pinned=np.empty, errstate=lambda **how: nullcontext())
    return {"cupy": cp, "cupyx": cupyx, "cupyx.scipy": scipy, "cupyx.scipy.special": special}


@contextmanager
def installed() -> Iterator[None]:
    """The stand-in in the place of cupy, with two "GPUs"; everything as it was afterwards."""
    made = modules()
    before = {name: sys.modules.pop(name, None) for name in made}
    kept = {n: sys.modules.pop(n) for n in list(sys.modules) if _is_family(n)}
    caches = (backend.missing, backend.gpus, available.backends, available._table)
    for cached in caches:
        cached.cache_clear()
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in [n for n in sys.modules if _is_family(n)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
        for cached in caches:
            cached.cache_clear()


def _is_family(name: str) -> bool:
    """A module of the backend that holds functions of the module `cupy`."""
    return name.startswith("nbflow.backends.cupy.") and not name.endswith(".ops")
