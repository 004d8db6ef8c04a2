from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InputError, VerificationError
from kit.golden import read_tensors, write_tensors

TENSORS = {
    "x": np.arange(6, dtype=np.float32).reshape(3, 2),
    "group": np.array([["ä"], [""], ["longer"]], dtype=object),
    "label": np.array([1, 0, 1]),
    "flag": np.array([True, False, True]),
    "empty": np.zeros((0, 4), dtype=np.float64),
}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.npz", TENSORS)
    read = read_tensors(tmp_path / "a.npz")
    assert set(read) == set(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape


def test_the_bytes_depend_on_the_tensors_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.npz", TENSORS)
    transposed = {name: np.asfortranarray(array) for name, array in reversed(TENSORS.items())}
    write_tensors(tmp_path / "b.npz", transposed)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5), max_size=4
    )
)
def test_strings_are_kept_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "strings.npz"
    write_tensors(path, {"s": np.array(values, dtype=object)})
    assert read_tensors(path)["s"].tolist() == values


@pytest.mark.parametrize("value", [None, 1.5, b"a", ["a"]])
def test_an_object_that_is_no_string_is_not_written(tmp_path: Path, value: object) -> None:
    array = np.empty(2, dtype=object)
    array[:] = ["a", value]
    with pytest.raises(InputError, match=r"tensor 's' holds .* not a string"):
        write_tensors(tmp_path / "a.npz", {"s": array})
    assert list(tmp_path.iterdir()) == []


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "a.npz", x=pickled)
    np.save(tmp_path / "b.npy", pickled)
    for name in ("a.npz", "b.npy"):
        with pytest.raises(VerificationError, match=f"{name} cannot be read as tensors: .*allow_pickle"):
            read_tensors(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(VerificationError, match=r"a\.npz cannot be read"):
        read_tensors(path)
    bare, text, dates = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(bare, np.zeros(3))
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("readme.txt", "hello")
    np.savez(dates, t=np.array(["2020-01-01"], dtype="M8[D]"))
    for content in (b"", b"text", b"PK\x03\x04", bare.getvalue()):
        path.write_bytes(content)
        with pytest.raises(VerificationError, match=r"a\.npz cannot be read as tensors"):
            read_tensors(path)
    for content, name in ((text.getvalue(), r"readme\.txt"), (dates.getvalue(), "t")):
        path.write_bytes(content)
        with pytest.raises(VerificationError, match=f"a.npz holds '{name}', which is not a tensor"):
            read_tensors(path)


def test_no_flipped_byte_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_tensors(path, TENSORS)
    healthy = path.read_bytes()
    refused = 0
    for offset in range(0, len(healthy), 3):
        path.write_bytes(healthy[:offset] + bytes([healthy[offset] ^ 0x55]) + healthy[offset + 1 :])
        try:
            read_tensors(path)
        except VerificationError:
            refused += 1
    assert refused > 0
