"""Fourier transforms and what belongs to them. ONNX has complex numbers as a last dimension of two."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from nbflow import ops
from nbflow.graph import Tensor
from nbflow.onnx.registry import Call, translates
from nbflow.onnx.translators.elementwise import dims, number
from nbflow.ops import fourier
from nbflow.spec import as_dtype, normalize_axis


def _complex(x: Tensor) -> Tensor:
    """(…, 1) or (…, 2) as (…) complex."""
    wide = np.dtype(np.complex128 if x.dtype == np.float64 else np.complex64)
    real = ops.astype(x[..., 0], wide)
    if dims(x)[-1] == 1:
        return real
    return real + ops.astype(x[..., 1], wide) * number(1j, real)


def _pairs(x: Tensor) -> Tensor:
    return ops.stack([ops.real(x), ops.imag(x)], axis=-1)


@translates("DFT", since=17)
def _dft(c: Call) -> Any:
    rank = c.rank()
    given = (c.attr("axis", 1),) if c.opset < 20 else c.ints(2) or (-2,)
    axis = normalize_axis(given[0], rank)
    points = None if c.get(1) is None else int(c.known(1).item())
    x, dtype = c[0], c[0].dtype
    one_sided, inverse = bool(c.attr("onesided", 0)), bool(c.attr("inverse", 0))
    if one_sided and inverse:
        made = ops.expand_dims(fourier.irfft(_complex(x), n=points, axis=axis), axis=rank - 1)
    elif one_sided:
        made = _pairs(fourier.rfft(x[..., 0], n=points, axis=axis))
    else:
        made = _pairs((fourier.ifft if inverse else fourier.fft)(_complex(x), n=points, axis=axis))
    return ops.astype(made, dtype)


@translates("STFT", since=17)
def _stft(c: Call) -> Any:
    """(batch, length, 1 or 2) → (batch, frames, frequencies, 2)."""
    signal, window = c[0], c.get(2)
    step = int(c.known(1).item())
    if c.get(3) is not None:
        size = int(c.known(3).item())
    elif window is not None and window.shape is not None and window.shape[0] is not None:
        size = window.shape[0]
    else:
        raise c.needs(c[0], "the length of a frame")
    length = (signal.shape or (None, None))[1]
    if length is None:
        raise c.needs(signal, "the length of the signal")
    starts = np.arange((length - size) // step + 1) * step
    values = signal[..., 0] if dims(signal)[-1] == 1 else _complex(signal)
    frames = ops.take(values, starts[:, None] + np.arange(size)[None, :], axis=1)
    if window is not None:
        frames = frames * ops.astype(window, frames.dtype)
    one_sided = bool(c.attr("onesided", 1)) and dims(signal)[-1] == 1
    return ops.astype(_pairs((fourier.rfft if one_sided else fourier.fft)(frames)), signal.dtype)


@translates("MelWeightMatrix", since=17)
def _mel(c: Call) -> Any:
    """Triangles over the frequencies of a transform, evenly spaced in mel: 2595 log10(1 + f / 700)."""
    bins, points, rate, low, high = (c.known(n).item() for n in range(5))
    dtype = as_dtype(helper.tensor_dtype_to_np_dtype(c.attr("output_datatype", TensorProto.FLOAT)))
    ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
    # As ONNX has it: bins + 2 edges, the last of which is one step short of the upper end.
    mel = ends[0] + np.arange(bins + 2) * (ends[1] - ends[0]) / (bins + 2)
    edges = np.floor((points + 1) * (700 * (10 ** (mel / 2595) - 1)) / rate).astype(int)
    made = np.zeros((points // 2 + 1, bins))
    for n in range(bins):
        first, middle, last = edges[n : n + 3]
        if middle == first:
            made[middle, n] = 1
        else:
            made[first : middle + 1, n] = (np.arange(first, middle + 1) - first) / (middle - first)
        if last > middle:
            made[middle:last, n] = (last - np.arange(middle, last)) / (last - middle)
    return ops.constant(made.astype(dtype))
