from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.errors import InputError, KitError, VerificationError
from kit.files import canonical_json
from kit.signature import Signature
from kit.tensors import DTYPES, TensorSpec, check_tensor

MIXED = Signature(
    "classification",
    (
        TensorSpec("measures", "float32", (-1, 2), ("width", "height"), nullable=True, minimum=-5, maximum=5),
        TensorSpec("image", "float32", (-1, 1, 2, 2), ("pixels",)),
        TensorSpec("group", "string", (-1, 1), ("group",), nullable=True),
        TensorSpec("count", "int64", (-1,), ("count",)),
        TensorSpec("flag", "bool", (-1, 1), ("flag",)),
    ),
    (TensorSpec("label", "int64", (-1,), classes=("no", "yes")),),
)


def rows() -> list[dict[str, Any]]:
    return [
        {"width": 1.5, "height": 2, "pixels": [1, 2, 3, 4], "group": "a", "count": 3, "flag": True},
        {"width": None, "height": -2.5, "pixels": [0, 0, 0, 0.5], "group": None, "count": -1, "flag": False},
    ]


def one(dtype: str, *shape: int, **more: Any) -> Signature:
    return Signature("", (TensorSpec("x", dtype, (-1, *shape), ("a",), **more),), ())


def refusal(signature: Signature, inputs: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        signature.validate(inputs)
    return caught.value


# rows and columns


def test_rows_and_columns_become_the_same_tensors() -> None:
    by_row = MIXED.from_rows(rows())
    columns = {name: [row[name] for row in rows()] for name in rows()[0]}
    arrays = {
        **columns,
        "width": np.array([1.5, np.nan], dtype=np.float32),
        "pixels": np.array([[1, 2, 3, 4], [0, 0, 0, 0.5]]),
        "group": np.array([["a"], [""]], dtype=object),
        "count": np.array([3, -1], dtype=np.int8),
    }
    for by_column in (MIXED.from_columns(columns), MIXED.from_columns(arrays)):
        assert list(by_column) == list(by_row)
        for name, array in by_row.items():
            np.testing.assert_array_equal(by_column[name], array)
            assert by_column[name].dtype == array.dtype
            assert by_column[name].shape == array.shape
    assert by_row["image"].shape == (2, 1, 2, 2)
    assert np.isnan(by_row["measures"][1, 0])
    assert by_row["group"].tolist() == [["a"], [""]]


def test_an_absent_key_counts_as_a_missing_value() -> None:
    first, second = rows()
    del second["group"], second["width"]
    assert MIXED.from_rows([first, second])["group"][1, 0] == ""


def test_no_rows_are_fine() -> None:
    tensors = MIXED.from_rows([])
    assert {name: array.shape for name, array in tensors.items()} == {
        "measures": (0, 2),
        "image": (0, 1, 2, 2),
        "group": (0, 1),
        "count": (0,),
        "flag": (0, 1),
    }


def test_a_list_written_in_a_csv_cell_is_read() -> None:
    assert one("float32", 3).from_columns({"a": ["[1, 2, 3]", "[4,5,6]"]})["x"][1].tolist() == [4, 5, 6]


def test_whole_numbers_are_exact_beside_a_float() -> None:
    values = [2**53 + 1, 2.0]
    assert one("int64").from_columns({"a": values})["x"].tolist() == [2**53 + 1, 2]
    assert one("int64", 2).from_columns({"a": [values]})["x"].tolist() == [[2**53 + 1, 2]]


def test_a_column_of_lists_of_strings_keeps_its_rows() -> None:
    values = np.array([["a", "b"], ["c", "d"]], dtype=object)
    assert one("string", 2).from_columns({"a": values})["x"].tolist() == [["a", "b"], ["c", "d"]]
    with pytest.raises(InputError, match="column 'a' does not hold 1 values in every row"):
        one("string").from_columns({"a": values})


@pytest.mark.parametrize(
    "signature,values,message",
    [
        (one("float32"), [1.0, "2"], r"column 'a', row 1: '2' is not a number \(input 'x' is float32\)"),
        (one("float32"), [1.0, {"a": 1}], r"column 'a', row 1: {'a': 1} is not a number"),
        (one("int64"), [1, 1.5], "column 'a', row 1: 1.5 is not a whole int64"),
        (one("int64"), [1, 2**64], "column 'a' holds a number too large for int64"),
        (one("int64"), [1, None], "column 'a', row 1: a value is missing"),
        (one("int64"), np.array([1, np.nan]), "column 'a', row 1: a value is missing"),
        (one("bool"), [True, 2], "column 'a', row 1: 2 is not a whole bool"),
        (one("uint8"), [255, 256], "column 'a', row 1: 256 is not a whole uint8"),
        (one("uint8", 2), np.array([[1, 2], [3, -1]]), "column 'a', row 1: -1 is not a whole uint8"),
        (one("float32"), [2**70, 10**400], "column 'a' holds a number too large for float32"),
        (one("float32"), [1.5, 10**400], "column 'a' holds a number too large for float32"),
        (one("float32", 2), [[1, 2], [3]], "column 'a' holds rows of different lengths"),
        (one("float32", 2), [[1, 2, 3]], "column 'a' does not hold 2 values in every row"),
        (one("float32"), ["[1"], r"column 'a', row 0: '\[1' is no JSON list"),
        (one("float32"), ["[" * 100_000], "row 0: .* is no JSON list"),
        (one("float32"), np.array(["a"]), "column 'a' holds values of type <U1; float32 is expected"),
        (one("string"), ["a", 1], r"input 'x' \(column 'a'\), row 1: 1 is not a string"),
        (one("string"), ["a", None], r"input 'x' \(column 'a'\), row 1: a value is missing"),
        (one("float32"), [1e39], r"input 'x' \(column 'a'\), row 0: infinity is not allowed"),
        (one("float32"), [None], r"input 'x' \(column 'a'\), row 0: a value is missing \(NaN\)"),
    ],
)
def test_a_value_that_does_not_fit_names_its_column_and_row(
    signature: Signature, values: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        signature.from_columns({"a": values})


def test_a_missing_column_comes_with_the_nearest_one() -> None:
    columns = {name: [row[name] for row in rows()] for name in rows()[0]}
    columns["widht"] = columns.pop("width")
    with pytest.raises(
        InputError, match=r"column 'width' is missing \(input 'measures' needs it\)"
    ) as caught:
        MIXED.from_columns(columns)
    assert "did you mean 'widht'?" in str(caught.value.hint)
    with pytest.raises(InputError, match="column 'width' is missing") as caught:
        MIXED.from_rows([{**rows()[0], "width": 1}, rows()[1]][:0] or [{"widht": 1}])
    assert "did you mean 'widht'?" in str(caught.value.hint)


def test_columns_of_different_lengths_are_refused() -> None:
    columns = {name: [row[name] for row in rows()] for name in rows()[0]}
    with pytest.raises(InputError, match="column 'height' does not have 2 rows like 'width'"):
        MIXED.from_columns(columns | {"height": [1.0]})
    with pytest.raises(InputError, match=r"the inputs differ in their number of rows: .* count has 1"):
        MIXED.from_columns(columns | {"count": [1]})


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(InputError, match="row 1 is a list; each row must be an object"):
        MIXED.from_rows([rows()[0], [1]])  # type: ignore[list-item]  # what the test is about


def test_an_input_without_columns_cannot_be_made_of_rows() -> None:
    signature = Signature("", (TensorSpec("x", "float32", (-1,)),), ())
    with pytest.raises(InputError, match="input 'x' is made of no columns"):
        signature.from_columns({})


VALUES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    st.lists(st.integers() | st.floats() | st.none() | st.text(max_size=2), max_size=3),
    st.lists(st.lists(st.integers(), max_size=2), max_size=2),
)


@given(st.sampled_from(sorted(DTYPES)), st.sampled_from([(), (1,), (2,)]), st.lists(VALUES, max_size=4))
def test_any_values_become_a_tensor_or_an_input_error(
    dtype: str, shape: tuple[int, ...], values: list[Any]
) -> None:
    with contextlib.suppress(InputError):
        tensor = one(dtype, *shape).from_columns({"a": values})["x"]
        assert tensor.shape == (len(values), *shape)
        assert tensor.dtype == DTYPES[dtype]


# tensors


def test_a_valid_tensor_is_not_copied() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    assert one("float32", 2).validate({"x": x})["x"] is x


@pytest.mark.parametrize(
    "signature,x,message",
    [
        (one("float32", 2), np.ones((3, 2)), "input 'x' has dtype float64; float32 is expected"),
        (one("float32", 2), np.ones((3, 2), ">f4"), "input 'x' has dtype >f4; float32 is expected"),
        (one("float32", 2), np.ones((3, 3), "f4"), r"input 'x' has shape \[3, 3\]; \[-1, 2\] is expected"),
        (one("float32", 2), np.ones(2, "f4"), r"input 'x' has shape \[2\]; \[-1, 2\] is expected"),
        (one("float32"), np.float32(1), r"input 'x' has shape \[\]; \[-1\] is expected"),
        (
            one("float32"),
            np.array([0, np.nan], "f4"),
            r"input 'x' \(column 'a'\), row 1: a value is missing \(NaN\)",
        ),
        (one("float32", nullable=True), np.array([0, -np.inf], "f4"), "row 1: infinity is not allowed"),
        (one("float32", maximum=1), np.array([1, 1.5], "f4"), "row 1: 1.5 is above the maximum 1"),
        (one("float64", 2, minimum=0), np.array([[0, 1], [2, -1.0]]), "row 1: -1.0 is below the minimum 0"),
        (one("int64", minimum=0), np.array([0, -7]), "row 1: -7 is below the minimum 0"),
        (one("uint8", maximum=9.0), np.array([10], "u1"), "row 0: 10 is above the maximum 9"),
        (one("string"), np.array([b"a"]), "input 'x' has dtype |S1; string is expected"),
        (one("string"), np.array(["a", None], object), "row 1: None is not a string"),
        (one("string", 2), np.array([["a", "b"], ["c", ""]]), "row 1: a value is missing"),
    ],
)
def test_a_tensor_that_breaks_the_signature_is_refused(signature: Signature, x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        signature.validate({"x": np.asarray(x)})


def test_missing_values_are_allowed_only_where_the_signature_says_so() -> None:
    x = np.array([1, np.nan], dtype=np.float32)
    assert np.isnan(one("float32", nullable=True, minimum=0, maximum=1).validate({"x": x})["x"][1])
    assert "set nullable = true for input 'x'" in str(refusal(one("float32"), {"x": x}).hint)


def test_large_finite_values_are_not_mistaken_for_infinity() -> None:
    x = np.full(3, np.finfo(np.float64).max)
    assert one("float64").validate({"x": x})["x"] is x


def test_bounds_are_inclusive() -> None:
    x = np.array([0.1, 0.7], dtype=np.float32)
    assert one("float32", minimum=0.1, maximum=0.7).validate({"x": x})["x"] is x


def test_unknown_and_missing_inputs_are_named() -> None:
    x = np.ones(1, dtype=np.float32)
    error = refusal(one("float32"), {"x": x, "X": x})
    assert error.message == "'X' is not an input of this model"
    assert refusal(one("float32"), {}).message == "input 'x' is missing"


def test_class_names_stand_for_indices() -> None:
    assert MIXED.class_names(np.array([1, 0, 1])) == ["yes", "no", "yes"]
    assert one("float32").classes == ()


# json

SPECS = st.builds(
    TensorSpec,
    name=st.text(min_size=1, max_size=5),
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(1, 9), max_size=3).map(lambda sizes: (-1, *sizes)),
    columns=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    nullable=st.booleans(),
    minimum=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    maximum=st.none() | st.integers(),
    classes=st.lists(st.text(max_size=3) | st.integers(), max_size=3).map(tuple),
)
SIGNATURES = st.builds(
    Signature,
    task=st.sampled_from(["classification", "regression"]),
    inputs=st.lists(SPECS, max_size=2).map(tuple),
    outputs=st.lists(SPECS, max_size=2).map(tuple),
)


@given(SIGNATURES)
def test_a_signature_survives_json(signature: Signature) -> None:
    assert Signature.from_json(signature.to_json()) == signature


def test_a_signature_s_json_is_stable() -> None:
    assert canonical_json(MIXED.to_json()) == canonical_json(Signature.from_json(MIXED.to_json()).to_json())


SPEC = {"name": "x", "dtype": "float32", "shape": [-1, 2]}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"colour": "red"}, "has the keys"),
        ({"dtype": "bfloat16"}, "dtype = 'bfloat16', which is not one of float32"),
        ({"dtype": ["float32"]}, "which is not one of float32"),
        ({"shape": [2]}, r"shape = \[2\], which is not -1 and then sizes"),
        ({"shape": []}, "which is not -1"),
        ({"shape": "no"}, "which is not -1"),
        ({"shape": [-1, -1]}, "which is not -1"),
        ({"columns": "width"}, "which is not a list of names"),
        ({"nullable": 1}, "which is not true or false"),
        ({"minimum": "0"}, "which is not a number"),
        ({"classes": [1.5]}, "which is not a list of names"),
        ({"name": 3}, "which is not a name"),
    ],
)
def test_a_damaged_specification_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        TensorSpec.from_json(SPEC | change)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "dtype", "shape", "columns", "task"]), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["task", "inputs", "outputs"]), JSON | st.lists(JSON, max_size=2)))
def test_any_json_is_a_signature_or_refused(value: dict[str, Any]) -> None:
    with contextlib.suppress(KitError):
        assert isinstance(Signature.from_json(value), Signature)


def test_a_value_out_of_bounds_names_its_own_column_and_what_to_do() -> None:
    spec = TensorSpec("x", "float32", (-1, 3), ("a", "b", "c"), minimum=0)
    error = refusal(Signature("", (spec,), ()), {"x": np.array([[1, 1, 1], [1, -2, 1]], "f4")})
    assert error.message == "input 'x' (column 'b'), row 1: -2.0 is below the minimum 0"
    assert error.hint == "correct the value, or change the bound of input 'x' and train again"


def test_the_size_of_a_row_is_not_worked_out_for_every_string() -> None:
    asked = []

    class Counting(TensorSpec):
        @property
        def row_size(self) -> int:
            asked.append(self.name)
            return super().row_size

    spec = Counting("x", "string", (-1, 2), ("a", "b"), nullable=True)
    check_tensor(spec, np.full((50, 2), "a", dtype=object))
    assert len(asked) <= 1
    with pytest.raises(InputError, match=r"column 'b'.*, row 30: None is not a string"):
        check_tensor(spec, np.array([["a", "b"]] * 30 + [["a", None]], dtype=object))
