"""Parquet and csv files through pyarrow (the extra `arrow`), a run of rows at a time.

Numbers and booleans become arrays, lists of numbers of one length rows of a matrix, other lists elements that differ in
shape. A missing number is a NaN in a floating column and an error in any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nbflow.data.blocks import Array, Columns, objects
from nbflow.errors import DataError
from nbflow.spec import TensorSpec, as_dtype, kind_of

# Rows of a parquet file that are unpacked at once, and bytes of a csv file that are.
_BATCH_ROWS = 1 << 13
_BLOCK_BYTES = 1 << 20

SUFFIXES = (".parquet", ".pq", ".csv")


def _pyarrow() -> Any:
    """The optional dependency. Raises DataError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("parquet and csv files need pyarrow: pip install 'nbflow[arrow]'") from error
    return pyarrow


def described(
    path: str, columns: Sequence[str] | None, dtypes: Mapping[str, np.dtype[Any]] = MappingProxyType({})
) -> tuple[dict[str, TensorSpec], int | None]:
    """The spec of each column's rows, and the number of rows (None for csv). `dtypes`: what columns are read as.

    Raises DataError, also for a dtype that the column's numbers do not fit.
    """
    pa = _pyarrow()
    try:
        if Path(path).suffix.lower() == ".csv":
            with _csv(path, columns, dtypes) as reader:
                schema, rows = reader.schema, None
        else:
            with pa.parquet.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, int(file.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    names = list(columns) if columns is not None else list(schema.names)
    missing = [n for n in names if n not in schema.names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(schema.names)}")
    specs = {n: _spec(path, n, schema.field(n).type) for n in names}
    for name, dtype in dtypes.items():
        if not np.can_cast(specs[name].dtype, dtype, "same_kind"):
            raise DataError(f"column {name!r} of {path} is {specs[name].dtype}, which does not become {dtype}")
        specs[name] = TensorSpec(specs[name].shape, dtype)
    return specs, rows


def _spec(path: str, name: str, kind: Any) -> TensorSpec:
    pa = _pyarrow()
    shape: tuple[int | None, ...] = ()
    inner = kind
    while pa.types.is_fixed_size_list(inner) or pa.types.is_list(inner) or pa.types.is_large_list(inner):
        shape = (*shape, inner.list_size if pa.types.is_fixed_size_list(inner) else None)
        inner = inner.value_type
    number = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
    if not number or shape.count(None) > 1 or None in shape[1:]:
        raise DataError(
            f"column {name!r} of {path} is {kind}: datasets hold numbers, booleans and lists of them; "
            "leave it out with columns=[…]"
        )
    return TensorSpec(shape, as_dtype(inner.to_pandas_dtype()))


def _csv(path: str, columns: Sequence[str] | None, dtypes: Mapping[str, np.dtype[Any]]) -> Any:
    pa = _pyarrow()
    return pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(columns) if columns else None,
            column_types={n: pa.from_numpy_dtype(d) for n, d in dtypes.items()},
        ),
    )


class ArrowReader:
    """Rows of some columns of one parquet or csv file, mostly in order; going back begins at a row group, or anew."""

    def __init__(self, path: str, names: Sequence[str], specs: Sequence[TensorSpec]) -> None:
        self._path, self._names, self._specs = path, list(names), list(specs)
        self._batches: Iterator[Any] | None = None
        self._open: Any = None
        self._block: Columns | None = None  # rows that were unpacked: `_first` is the number of the first
        self._first = 0
        self.rows: int | None = None
        if Path(path).suffix.lower() != ".csv":
            self.rows = described(path, names)[1]

    def read(self, start: int, count: int) -> Columns | None:
        """At most `count` rows from `start` on; None at the end. Raises DataError for damage."""
        pa = _pyarrow()
        try:
            if self._batches is None or start < self._first:
                self._seek(start)
            while self._block is None or start >= self._first + len(self._block[0]):
                if not self._advance():
                    return None
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self._path} cannot be read at row {start}: {error}") from error
        assert self._block is not None
        begin = start - self._first
        return tuple(c[begin : begin + count] for c in self._block)

    def _seek(self, start: int) -> None:
        self.close()
        pa = _pyarrow()
        self._block, self._first = None, 0
        if Path(self._path).suffix.lower() == ".csv":
            dtypes = {n: s.dtype for n, s in zip(self._names, self._specs, strict=True)}
            self._open = _csv(self._path, self._names, dtypes)
            self._batches = iter(self._open)
            return
        self._open = pa.parquet.ParquetFile(self._path)
        groups = list(range(self._open.num_row_groups))
        while len(groups) > 1 and self._first + self._open.metadata.row_group(groups[0]).num_rows <= start:
            self._first += self._open.metadata.row_group(groups.pop(0)).num_rows
        self._batches = self._open.iter_batches(_BATCH_ROWS, row_groups=groups, columns=self._names, use_threads=False)

    def _advance(self) -> bool:
        assert self._batches is not None
        batch = next(self._batches, None)
        if batch is None:
            return False
        self._first += 0 if self._block is None else len(self._block[0])
        made = [self._column(batch.column(n), n, s) for n, s in zip(self._names, self._specs, strict=True)]
        self._block = tuple(made)
        return True

    def _column(self, column: Any, name: str, spec: TensorSpec) -> Array:
        pa = _pyarrow()
        rows = len(column)
        if column.null_count and not (kind_of(spec.dtype) == "f" and not spec.shape):
            raise DataError(f"column {name!r} of {self._path} has missing values, which {spec} cannot hold")
        if spec.shape and spec.shape[0] is None:
            return objects([self._column(pa.array(row.values), name, self._inner(spec)) for row in column])
        inner, shape = column, [rows, *(d or 0 for d in spec.shape or ())]
        while pa.types.is_fixed_size_list(inner.type):
            inner = inner.flatten()
        if inner.null_count and inner is not column:
            raise DataError(f"column {name!r} of {self._path} has missing values in its lists")
        made: Array = inner.to_numpy(zero_copy_only=False)
        return made.astype(spec.dtype, copy=False).reshape(shape)

    @staticmethod
    def _inner(spec: TensorSpec) -> TensorSpec:
        return TensorSpec((spec.shape or ())[1:], spec.dtype)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._batches = None
