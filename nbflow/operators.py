"""Python's operators and the usual methods, for whatever stands for a tensor: `graph.Tensor`, `variable.Variable`.

Each builds an op. The functions that do so live far above, in `nbflow.ops`, which fills `TENSOR_METHODS`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbflow.graph import Tensor

# What `nf` offers at least; later versions of the standard only add to earlier ones.
ARRAY_API_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12")

# Filled by `nbflow.ops`.
TENSOR_METHODS: dict[str, Callable[..., Tensor]] = {}


class Operators:
    """A mix-in. `==` builds an elementwise comparison, as in numpy; hashing stays by identity."""

    __slots__ = ()
    # numpy must hand `array + tensor` over to us instead of looping over it.
    __array_priority__ = 1000
    __array_ufunc__ = None

    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["add"](self, other)

    def __radd__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["add"](other, self)

    def __sub__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["subtract"](self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["subtract"](other, self)

    def __mul__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["multiply"](self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["multiply"](other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["divide"](self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["divide"](other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["floor_divide"](self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["floor_divide"](other, self)

    def __mod__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["remainder"](self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["remainder"](other, self)

    def __pow__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["pow"](self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["pow"](other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["matmul"](other, self)

    def __neg__(self) -> Tensor:
        return TENSOR_METHODS["negative"](self)

    def __abs__(self) -> Tensor:
        return TENSOR_METHODS["abs"](self)

    def __invert__(self) -> Tensor:
        return TENSOR_METHODS["bitwise_invert"](self)

    def __and__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_and"](self, other)

    def __rand__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_and"](other, self)

    def __or__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_or"](self, other)

    def __ror__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_or"](other, self)

    def __xor__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_xor"](self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_xor"](other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_left_shift"](self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_left_shift"](other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_right_shift"](self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["bitwise_right_shift"](other, self)

    def __lt__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["less"](self, other)

    def __le__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["less_equal"](self, other)

    def __gt__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["greater"](self, other)

    def __ge__(self, other: Any) -> Tensor:
        return TENSOR_METHODS["greater_equal"](self, other)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]  # numpy's meaning, not object's
        return TENSOR_METHODS["equal"](self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]  # numpy's meaning, not object's
        return TENSOR_METHODS["not_equal"](self, other)

    def __getitem__(self, key: Any) -> Tensor:
        return TENSOR_METHODS["getitem"](self, key)

    def sum(self, axis: Any = None, *, keepdims: bool = False, dtype: Any = None) -> Tensor:
        return TENSOR_METHODS["sum"](self, axis=axis, keepdims=keepdims, dtype=dtype)

    def mean(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        return TENSOR_METHODS["mean"](self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        return TENSOR_METHODS["max"](self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> Tensor:
        return TENSOR_METHODS["min"](self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        return TENSOR_METHODS["argmax"](self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        dims = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return TENSOR_METHODS["reshape"](self, dims)

    def astype(self, dtype: Any) -> Tensor:
        return TENSOR_METHODS["astype"](self, dtype)

    def to_device(self, device: Any, /, *, stream: Any = None) -> Tensor:
        """The same value on `device`. Raises ValueError for a `stream`, which no device here has."""
        if stream is not None:
            raise ValueError(f"to_device takes no stream here, got {stream!r}")
        return TENSOR_METHODS["to_device"](self, device)

    def __array_namespace__(self, /, *, api_version: str | None = None) -> ModuleType:
        """The module with the array API's functions. Raises ValueError for a version that it does not know."""
        if api_version not in (None, *ARRAY_API_VERSIONS):
            raise ValueError(f"versions of the array API are {', '.join(ARRAY_API_VERSIONS)}, not {api_version!r}")
        return sys.modules[__name__.partition(".")[0]]

    @property
    def size(self) -> int | None:
        """The number of elements, None where a dimension is not known."""
        shape = self.shape  # type: ignore[attr-defined]  # of the class that mixes this in
        return None if shape is None or None in shape else math.prod(shape)

    @property
    def mT(self) -> Tensor:  # noqa: N802  # the array API's name
        return TENSOR_METHODS["matrix_transpose"](self)

    @property
    def T(self) -> Tensor:  # noqa: N802  # the array API's name
        return TENSOR_METHODS["matrix_transpose"](self)
