"""Arrays on disk: every dtype, what others read and write, damage, and crashes in the middle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbflow import weights
from nbflow.errors import CheckpointError
from nbflow.spec import BFLOAT16
from nbflow.weights import MANIFEST, Folder, FolderWriter, in_shards, read_shard, write_shard

KIND = {"format": "test", "version": 1}
DTYPES = list(weights._DTYPES.values())


def save(folder: Path, *shards: dict[str, Any], **more: Any) -> None:
    with FolderWriter(folder, "weights") as writer:
        for shard in shards:
            writer.add({name: np.asarray(value) for name, value in shard.items()})
        writer.commit({**KIND, **more})


def everything(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    for part in Folder(folder).read():
        found.update(part)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype: np.dtype[Any], shape: tuple[int, ...], tmp_path: Path) -> None:
    value = np.random.default_rng(0).integers(0, 2, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)
    save(tmp_path, {"a": value, "b/c": value})
    found = everything(tmp_path)
    assert list(found) == ["a", "b/c"]
    for back in found.values():
        assert (back.dtype, back.shape, back.tobytes()) == (dtype, shape, value.tobytes())


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1),
        hnp.arrays(
            st.sampled_from([d for d in DTYPES if d not in (BFLOAT16, np.complex128)]), hnp.array_shapes(min_dims=0)
        ),
    )
)
def test_any_names_and_arrays(arrays: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # one an example
        path = Path(folder) / "x"
        write_shard(path, arrays)
        found = read_shard(path)
        assert found.keys() == arrays.keys()
        assert all(found[n].tobytes() == arrays[n].tobytes() and found[n].dtype == arrays[n].dtype for n in arrays)


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False]), "n": np.int64(3)}
    save(tmp_path, arrays, {"c": np.array([1 + 2j], np.complex64)})
    files = sorted(tmp_path.glob("*.safetensors"))
    found = safetensors.numpy.load_file(files[0])
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    np.testing.assert_array_equal(safetensors.numpy.load_file(files[1])["c"], [1 + 2j])


def test_bfloat16_has_its_code(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", {"w": np.ones((2, 2), BFLOAT16)})
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        assert file.get_slice("w").get_dtype() == "BF16"


def test_what_the_safetensors_library_writes_is_read(tmp_path: Path) -> None:
    arrays = {"w": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.arange(3, dtype=np.uint32)}
    safetensors.numpy.save_file(arrays, tmp_path / "x", metadata={"by": "another"})
    found = read_shard(tmp_path / "x")
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["w"], arrays["w"])


def test_arrays_of_any_layout(tmp_path: Path) -> None:
    a = np.arange(24).reshape(2, 3, 4)
    save(tmp_path, {"t": a.transpose(2, 0, 1), "r": a[::-1, ::2], "c": (a * 1j)[:, 1].T})
    found = everything(tmp_path)
    np.testing.assert_array_equal(found["t"], a.transpose(2, 0, 1))
    np.testing.assert_array_equal(found["r"], a[::-1, ::2])
    np.testing.assert_array_equal(found["c"], (a * 1j)[:, 1].T)


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'a' is object, which cannot be saved; saved are bool"):
        save(tmp_path, {"b": 1.0}, {"a": np.array([object()])})
    with pytest.raises(CheckpointError, match=r"no tensor can be called '__metadata__'"):
        save(tmp_path, {"__metadata__": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, {"a": 1}, {"b": 2})
    save(tmp_path, {"a": 3})
    assert {n: int(v) for n, v in everything(tmp_path).items()} == {"a": 3}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("call", range(1, 6))
def test_a_crash_anywhere_leaves_the_last_good_one(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second save dies at its n-th wish to make something durable: shard, shard, manifest, folder, folder."""
    save(tmp_path, {"a": 1}, {"b": 2})
    left = call

    def die(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise SystemExit
        os.fsync(descriptor)

    monkeypatch.setattr(weights, "_make_durable", die)
    # As with a real crash, nobody tidies up.
    monkeypatch.setattr(FolderWriter, "__exit__", lambda *args: None)
    with pytest.raises(SystemExit):
        save(tmp_path, {"a": 10}, {"b": 20})
    monkeypatch.undo()
    expected = {"a": 10, "b": 20} if call == 5 else {"a": 1, "b": 2}  # the manifest is replaced before the fifth
    assert {n: int(v) for n, v in everything(tmp_path).items()} == expected
    for path in tmp_path.glob("*.safetensors"):
        os.utime(path, (0, 0))
    save(tmp_path, {"a": 5})
    assert {n: int(v) for n, v in everything(tmp_path).items()} == {"a": 5}
    assert len(list(tmp_path.glob("*.safetensors"))) == 1, "what the crash left is gone"


def test_a_full_disk_is_said_and_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"a": 1})
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_make_durable", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, {"a": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert int(everything(tmp_path)["a"]) == 1


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 20, -1], ids=["length", "header", "data"])
def test_one_flipped_bit_of_a_shard_is_found(at: int, tmp_path: Path) -> None:
    save(tmp_path, {"a": np.arange(100)})
    (shard,) = tmp_path.glob("*.safetensors")
    damage(shard, at)
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged: it has another SHA-256"):
        everything(tmp_path)


def test_missing_and_cut_off_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds nothing that was saved: it has no manifest.json"):
        Folder(tmp_path)
    save(tmp_path, {"a": np.arange(100)})
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        everything(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit its"):
        read_shard(shard)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read: No such file"):
        everything(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "file", {"a": 1})


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 7, b"\xff" * 16, b"\x02" + b"\x00" * 7 + b"[]", b"\x0c" + b"\x00" * 7 + b'{"a":"text"}'],
    ids=["empty", "short", "huge header", "a list", "a text"],
)
def test_no_safetensors_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged"):
        read_shard(tmp_path / "x")


def test_a_manifest_that_was_changed(tmp_path: Path) -> None:
    save(tmp_path, {"a": 1}, note="as it was")
    manifest = tmp_path / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace("as it was", "otherwise"))
    with pytest.raises(CheckpointError, match="its digest does not fit"):
        Folder(tmp_path)
    manifest.write_text(text[:-20])
    with pytest.raises(CheckpointError, match="damaged"):
        Folder(tmp_path)


def rewritten(folder: Path, **changes: Any) -> None:
    """The manifest with other content and a digest that fits: what a newer or a hostile writer makes."""
    whole = {**json.loads((folder / MANIFEST).read_text()), **changes}
    whole["sha256"] = weights._manifest_digest(whole)
    (folder / MANIFEST).write_text(json.dumps(whole))


def test_formats_and_versions(tmp_path: Path) -> None:
    save(tmp_path, {"a": 1}, nbflow="9.9.9")
    Folder(tmp_path).expect("test", 1)
    with pytest.raises(CheckpointError, match="is of format 'test', not 'other'"):
        Folder(tmp_path).expect("other", 1)
    rewritten(tmp_path, version=2)
    with pytest.raises(
        CheckpointError, match=r"written by nbflow 9.9.9 in version 2 .* reads up to version 1: upgrade"
    ):
        Folder(tmp_path).expect("test", 1)


def test_files_elsewhere_are_not_opened(tmp_path: Path) -> None:
    save(tmp_path, {"a": 1})
    for name in ("../x", "/etc/passwd", "a/b", "", ".hidden"):
        rewritten(tmp_path, files=[{"file": name, "sha256": "", "bytes": 0}])
        with pytest.raises(CheckpointError, match="not the name of a file beside it"):
            Folder(tmp_path)


def test_tensors_that_are_not_as_announced(tmp_path: Path) -> None:
    save(tmp_path, {"a": np.zeros(3, np.float32)})
    table = json.loads((tmp_path / MANIFEST).read_text())["tensors"]
    rewritten(tmp_path, tensors={"a": {**table["a"], "shape": [4]}})
    with pytest.raises(CheckpointError, match=r"holds float32 \(3,\) for 'a', the manifest says float32 \(4,\)"):
        everything(tmp_path)
    rewritten(tmp_path, tensors={"b": table["a"]})
    with pytest.raises(CheckpointError, match=r"holds nothing for 'b'"):
        everything(tmp_path)


def test_shards_are_of_bounded_size() -> None:
    assert in_shards({"a": 4, "b": 4, "c": 9, "d": 1, "e": 0}, 8) == [["a", "b"], ["c"], ["d", "e"]]
    assert in_shards({}, 8) == []
