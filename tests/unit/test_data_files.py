"""Datasets from files: what is in them, read in runs, continued anywhere, larger than memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nbflow as nf
from nbflow.data import formats
from nbflow.data.iterator import DataIterator
from nbflow.errors import DataError
from nbflow.graph import Graph
from nbflow.testing import Evaluator
from tests.unit.data_checks import check_resumes, elements

X, Y = np.arange(24.0).reshape(12, 2), np.arange(12)


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], **damage: Any) -> None:
    """By the format's own page, so that reading is not compared with itself."""
    names = {"float64": "F64", "float32": "F32", "int64": "I64", "bool": "BOOL", "bfloat16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"made": "by a test"}}
    data = b""
    for name, array in arrays.items():
        start, data = len(data), data + array.tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
            **damage,
        }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def arrow() -> Any:
    for part in ("pyarrow.csv", "pyarrow.parquet"):
        pytest.importorskip(part, reason="parquet and csv need pyarrow: pip install 'nbflow[arrow]'")
    return sys.modules["pyarrow"]


def save(folder: Path, kind: str, number: int, x: np.ndarray, y: np.ndarray) -> None:
    path = folder / f"shard-{number}.{kind.split(maxsplit=1)[0]}"
    if kind == "npz":
        np.savez(path, x=x, y=y)
    elif kind == "npz packed":
        np.savez_compressed(path, x=x, y=y)
    elif kind == "safetensors":
        write_safetensors(path, {"x": x, "y": y})
    else:
        pa = arrow()
        if kind == "csv":
            pa.csv.write_csv(pa.table({"x": x[:, 0] + 0.5, "y": y}), path)
        else:
            rows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 2)
            pa.parquet.write_table(pa.table({"x": rows, "y": y}), path, row_group_size=2)


@pytest.mark.parametrize("kind", ["npz", "npz packed", "safetensors", "parquet", "csv"])
def test_shards_come_in_the_order_of_their_names(tmp_path: Path, kind: str) -> None:
    for n, rows in ((1, slice(5, 9)), (0, slice(0, 5)), (2, slice(9, 12))):
        save(tmp_path, kind, n, X[rows], Y[rows])
    dataset = nf.data.from_files(str(tmp_path / "shard-*"))
    x = X[:, 0] + 0.5 if kind == "csv" else X
    assert dataset.cardinality == (None if kind == "csv" else 12)
    assert dataset.element_spec["x"] == nf.TensorSpec(x.shape[1:], np.dtype(np.float64))
    found = list(dataset.batch(5))
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), x)
    np.testing.assert_array_equal(np.concatenate([b["y"] for b in found]), Y)
    assert [len(b["y"]) for b in found] == [5, 5, 2]
    check_resumes(dataset.shuffle(4, seed=1).repeat(2).batch(3).prefetch(2))
    check_resumes(nf.data.from_files(str(tmp_path / "shard-*"), interleave=2).batch(3))
    one = nf.data.from_files(str(tmp_path / "shard-*"), columns=["y"], interleave=3)
    assert [e["y"] for e in elements(one)][:6] == [0, 5, 9, 1, 6, 10]


def test_dtypes_and_byte_orders(tmp_path: Path) -> None:
    arrays = {
        "half": np.arange(3, dtype=np.float16),
        "big": np.arange(3, dtype=">i4"),
        "flags": np.array([[True], [False], [True]]),
        "complex": np.arange(3) * 1j,
    }
    np.savez(tmp_path / "a.npz", **arrays)
    (found,) = nf.data.from_files(tmp_path / "a.npz").batch(3)
    for name, right in arrays.items():
        assert found[name].dtype == right.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], right)
    weights = np.arange(4).astype(ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "a.safetensors", {"w": weights, "empty": np.zeros((4, 0), np.float32)})
    (found,) = nf.data.from_files(tmp_path / "a.safetensors").batch(9)
    assert found["w"].dtype == ml_dtypes.bfloat16
    assert found["w"].tolist() == [0, 1, 2, 3]
    assert found["empty"].shape == (4, 0)


def test_a_packed_file_is_read_back_from_its_beginning(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X)
    reader = formats.ArrayReader(str(tmp_path / "a.npz"), ["x"])
    for start, count in ((0, 2), (5, 3), (1, 4), (5, 20), (12, 1)):
        found = reader.read(start, count)
        if start == 12:
            assert found is None
        else:
            np.testing.assert_array_equal(found[0], X[start : start + count])
    reader.close()


def test_one_npy_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with Graph().as_default():
        batch = nf.data.from_files([tmp_path / "a.npy"]).batch(7).next()
        runner = Evaluator()
        found = [runner.run(batch["x"]) for _ in range(2)]
        runner.state.clear()
    np.testing.assert_array_equal(np.concatenate(found), X)


def test_files_that_are_refused(tmp_path: Path) -> None:
    def refused(text: str, *names: str, **options: Any) -> None:
        with pytest.raises(DataError, match=text):
            nf.data.from_files([str(tmp_path / n) for n in names], **options)

    with pytest.raises(DataError, match="no file matches"):
        nf.data.from_files(str(tmp_path / "*.npz"))
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)))
    np.savez(tmp_path / "uneven.npz", x=np.zeros(3), y=np.zeros(4))
    np.savez(tmp_path / "scalar.npz", x=np.zeros(()))
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    np.save(tmp_path / "columns.npy", np.asfortranarray(X))
    (tmp_path / "c.npz").write_bytes(b"nothing of the kind")
    refused("must be alike", "a.npz", "b.npz")
    refused("cannot be read", "c.npz")
    refused("cannot be read", "missing.npz")
    refused(r"files are \.npy, \.npz", "d.txt")
    refused("differ in their number of rows", "uneven.npz")
    refused("single number", "scalar.npz")
    refused("numbers and booleans", "text.npz")
    refused("column-major", "columns.npy")
    refused("no array 'z'; it has x", "a.npz", columns=["z"])
    refused("at least 1 file", "a.npz", interleave=0)
    assert nf.data.from_files(tmp_path / "uneven.npz", columns=["y"]).cardinality == 4


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ({"dtype": "F8_E4M3"}, "F8_E4M3"),
        ({"shape": [99]}, "does not fit its place"),
        ({"data_offsets": [0, 10**9]}, "does not fit its place"),
        ({"shape": None}, "cannot be read"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, damage: dict[str, Any], text: str) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"x": X}, **damage)
    with pytest.raises(DataError, match=text):
        nf.data.from_files(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(DataError, match="beyond its end"):
        nf.data.from_files(tmp_path / "b.safetensors")


def test_files_that_change_or_go_away(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    dataset = nf.data.from_files(tmp_path / "a.npz").batch(4)
    np.savez(tmp_path / "a.npz", x=X[:5])
    with pytest.raises(DataError, match="had 12 rows when the dataset was made, it has 5"):
        list(dataset)
    (tmp_path / "a.npz").unlink()
    with pytest.raises(DataError, match="is not on this machine"):
        list(dataset)


def test_a_place_holds_where_the_files_moved(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", X)
    here, there = (nf.data.from_files(tmp_path / f / "a.npy").batch(4) for f in ("here", "there"))
    with Graph().as_default():
        assert here.next()["x"].node.attrs["fingerprint"] == there.next()["x"].node.attrs["fingerprint"]


# --- parquet and csv -------------------------------------------------------------------------------------------------


def test_columns_of_parquet(tmp_path: Path) -> None:
    pa = arrow()
    table = pa.table(
        {
            "f": pa.array([1.5, None, 2.5], pa.float32()),
            "i": pa.array([1, 2, 3], pa.int16()),
            "b": pa.array([True, False, True]),
            "rows": pa.array([[1, 2], [3], []], pa.list_(pa.int64())),
            "text": pa.array(["a", "b", "c"]),
            "gaps": pa.array([1, None, 3]),
        }
    )
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' of .* is string: .* columns="):
        nf.data.from_files(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'zz'; it has f, i, b"):
        nf.data.from_files(tmp_path / "a.parquet", columns=["zz"])
    dataset = nf.data.from_files(tmp_path / "a.parquet", columns=["b", "f", "i", "rows"])
    assert [str(s) for s in dataset.element_spec.values()] == ["bool[]", "float32[]", "int16[]", "int64[?]"]
    (found,) = dataset.padded_batch(3, values={"rows": -1})
    np.testing.assert_array_equal(found["f"], np.array([1.5, np.nan, 2.5], np.float32))
    assert found["i"].tolist() == [1, 2, 3]
    assert found["b"].tolist() == [True, False, True]
    assert found["rows"].tolist() == [[1, 2], [3, -1], [-1, -1]]
    with pytest.raises(DataError, match=r"'gaps' of .* has missing values"):
        list(nf.data.from_files(tmp_path / "a.parquet", columns=["gaps"]))


def test_columns_are_read_as_what_one_says(tmp_path: Path) -> None:
    arrow()
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "b.csv").write_text("x,y\n0.5,2\n")
    with pytest.raises(DataError, match="must be alike"):
        nf.data.from_files(tmp_path / "*.csv")
    dataset = nf.data.from_files(tmp_path / "*.csv", columns={"x": "float32", "y": None})
    assert [str(s) for s in dataset.element_spec.values()] == ["float32[]", "int64[]"]
    assert [e["x"] for e in elements(dataset)] == [1, 3, 0.5]
    with pytest.raises(DataError, match="cannot be read"):
        list(nf.data.from_files(tmp_path / "b.csv", columns={"x": "int64"}))
    pa = arrow()
    pa.parquet.write_table(pa.table({"x": [1, 2], "y": [0.5, 1.5]}), tmp_path / "a.parquet")
    dataset = nf.data.from_files(tmp_path / "a.parquet", columns={"x": "float32", "y": "float32"})
    (batch,) = dataset.batch(2)
    assert {n: a.dtype.name for n, a in batch.items()} == {"x": "float32", "y": "float32"}
    with pytest.raises(DataError, match=r"'y' of .* is float64, which does not become int64"):
        nf.data.from_files(tmp_path / "a.parquet", columns={"y": "int64"})
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(DataError, match=r"is float64, not float32; .* arrays with \.map"):
        nf.data.from_files(tmp_path / "a.npz", columns={"x": "float32"})


def test_damage_in_csv_is_said(tmp_path: Path) -> None:
    arrow()
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4,5\n")
    with pytest.raises(DataError, match="cannot be read"):
        list(nf.data.from_files(tmp_path / "a.csv"))


# --- larger than memory ----------------------------------------------------------------------------------------------

STREAM = """
import resource, sys
import nbflow as nf
from nbflow.data.build import Environment

dataset = nf.data.from_files(sys.argv[1]).shuffle(500, seed=0).batch(200)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
rows, total = 0, 0
for batch in dataset.prefetch(2):
    rows += len(batch["x"])
    total += float(batch["x"].sum())
print(rows, total)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space, which only Linux does")
@pytest.mark.parametrize("kind", ["npy", "npz packed"])
def test_a_file_larger_than_memory_streams(tmp_path: Path, kind: str) -> None:
    """400 MB of rows in a process that may take 160 MB more than it has, threads' stacks included."""
    rows, width = 100_000, 1000
    path = tmp_path / f"big.{kind.split(maxsplit=1)[0]}"
    if kind == "npy":
        big = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))  # a sparse file: nothing is written
        big[-1] = 1
        big.flush()
        del big
    else:
        np.savez_compressed(path, x=np.zeros((rows, width // 4), np.float32) + 0.5)
        width //= 4
    code = [sys.executable, "-c", STREAM, str(path), str(160 << 20 if kind == "npy" else 90 << 20)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(rows), str(float(width) if kind == "npy" else rows * width * 0.5)]


# --- side by side ----------------------------------------------------------------------------------------------------


def test_zip() -> None:
    one = nf.data.from_arrays(np.arange(4))
    two = nf.data.from_arrays({"a": np.arange(4) * 2, "b": np.arange(4) * 3})
    with Graph().as_default():
        batch = nf.data.zip(left=one, right=two).batch(4).next()
        found = Evaluator().run(batch)
    assert {k: v.tolist() for k, v in found.items()} == {
        "left": [0, 1, 2, 3],
        "right/a": [0, 2, 4, 6],
        "right/b": [0, 3, 6, 9],
    }
    with pytest.raises(DataError, match="number of rows"):
        nf.data.zip(left=one, right=nf.data.from_arrays(np.arange(3)))


def test_replicas_read_files_alike(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    tree = nf.data.from_files(tmp_path / "a.npy").shuffle(5, seed=1).batch(5).tree
    parts = [DataIterator(tree, shard=(i, 2)) for i in range(2)]
    whole = DataIterator(tree)
    for _ in range(3):
        np.testing.assert_array_equal(np.concatenate([p.next()[0] for p in parts]), whole.next()[0])
    for iterator in (*parts, whole):
        iterator.close()
