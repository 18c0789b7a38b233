"""Ids are exact: int64, uint64 and text, in columns, in tables and one by one."""

import os
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_model.data.identifiers import id_of, ids_from, ids_of, integer_of, joined, require_distinct
from python_model.io.errors import DataError
from python_model.serving.ids import IdTable

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
INTEGERS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
UNSIGNED = st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])


def test_texts_with_leading_zeros_are_other_ids() -> None:
    found = ids_of(pa.array(["007", "007", "7", "7", "7"]), "log", "uid")
    assert found.tolist() == ["007", "007", "7", "7", "7"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.2, 1.7, 2.0]),
        pa.array([1], pa.timestamp("s")),
        pa.array([True]),
        pa.array([b"1"]),
        pa.array([[1]]),
        pa.array([1], pa.decimal128(5)),
    ],
)
def test_other_types_are_no_ids(column: pa.Array) -> None:
    with pytest.raises(DataError, match="expected integers or text"):
        ids_of(column, "log", "uid")


@pytest.mark.parametrize(
    "column", [pa.array([1, None]), pa.array(["a", None]), pa.array(["a", ""]), pa.array(["a", "x" * 1025])]
)
def test_a_missing_empty_or_endless_id_names_its_row(column: pa.Array) -> None:
    with pytest.raises(DataError) as caught:
        ids_of(column, "log", "uid", first_row=5)
    assert caught.value.row == 6


def test_types_are_as_narrow_as_the_values_allow() -> None:
    assert ids_of(pa.array([3], pa.uint64()), "log", "uid").dtype == np.int64
    assert ids_of(pa.array([2**63], pa.uint64()), "log", "uid").tolist() == [2**63]
    assert ids_of(pa.array(["b", "a", "b"]).dictionary_encode(), "log", "uid").tolist() == ["b", "a", "b"]


@given(st.lists(INTEGERS | UNSIGNED, unique=True), st.lists(INTEGERS | UNSIGNED))
def test_tables_of_integers_find_exactly_what_they_hold(held: list[int], asked: list[int]) -> None:
    for low, high, dtype in ((-(2**63), 2**63, np.int64), (0, 2**64, np.uint64)):
        ids = [one for one in held if low <= one < high]
        table = IdTable(np.array(ids, dtype), "the items")
        for kind, bottom, top in ((pa.int64(), -(2**63), 2**63), (pa.uint64(), 0, 2**64)):
            column = [one for one in (asked + held) if bottom <= one < top]
            expected = [ids.index(one) if one in ids else -1 for one in column]
            assert table.find(pa.array(column, kind), "item_id").tolist() == expected
            assert [table.number(one) for one in column] == expected
            assert [table.number(str(one)) for one in column] == expected


def test_a_table_of_dense_numbers_wraps_nothing() -> None:
    table = IdTable(np.arange(4), "the items")
    column = pa.array([2**63, 2**64 - 1, 3], pa.uint64())
    assert table.find(column, "item_id").tolist() == [-1, -1, 3]


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text()))
def test_tables_of_text_find_exactly_what_they_hold(held: list[str], asked: list[str]) -> None:
    texts = [one for one in held if not any("\ud800" <= c <= "\udfff" for c in one)]
    column = [one for one in asked + held if not any("\ud800" <= c <= "\udfff" for c in one)]
    table = IdTable(np.array(texts, object), "the items")
    expected = [texts.index(one) if one in texts else -1 for one in column]
    assert table.find(pa.array(column, pa.string()), "item_id").tolist() == expected
    assert [table.number(one) for one in column] == expected


@pytest.mark.parametrize("text", ["٥", "²", "--5", "+5", "05", "007", "-0", " 5", "5 ", "5.0", "1_000", "", "9" * 5000])
def test_only_the_canonical_spelling_is_an_integer(text: str) -> None:
    assert integer_of(text) is None
    assert IdTable(np.array([5, 7, 1000]), "the items").number(text) == -1


@pytest.mark.parametrize("value", [True, False, 5.0, None, [1], {"a": 1}, np.bool_(True), b"5"])
def test_what_is_no_id_is_unknown_to_every_table(value: Any) -> None:
    for ids in (np.array([0, 1, 5]), np.array(["True", "5.0", "None", "5"], object)):
        assert IdTable(ids, "the items").number(value) == -1
    with pytest.raises(ValueError, match=r"^item is .*expected an integer or text"):
        id_of(value, "item")


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "", "x" * 1025, "\ud800"])
def test_an_id_out_of_bounds_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^user is .*expected"):
        id_of(value, "user")


def test_random_columns_of_ids_are_exact_or_refused() -> None:
    """Values of any kind in parts of any type: what is joined equals what went in, or it is a DataError."""
    dice, outcomes = random.Random(2), {"taken": 0, "refused": 0}
    values: list[Any] = [
        0, 7, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), "007", "7", "", "é", "x" * 1025,
        "\ud800", 7.0, float("nan"), True, None, b"7", [7], np.int8(7), np.uint64(2**63),
    ]  # fmt: skip
    for _ in range(3_000 * SCALE):
        pool = dice.sample(values, dice.choice([1, 1, 2, 3]))
        chunks: list[Any] = [[dice.choice(pool) for _ in range(dice.randrange(3))] for _ in range(dice.randrange(1, 3))]
        whole = [one for chunk in chunks for one in chunk]
        if dice.random() < 0.3:
            try:
                kinds: list[Any] = [object, np.int64, np.uint64, "U5"]
                chunks = [np.array(chunk, dice.choice(kinds)) for chunk in chunks]
            except (ValueError, TypeError, OverflowError):
                continue
            whole = [one for chunk in chunks for one in chunk.tolist()]
        try:
            found = joined([ids_from(chunk, "log", "id") for chunk in chunks], "log", "id")
            require_distinct(found, "log", "id")
        except DataError as error:
            outcomes["refused"] += 1
            assert error.column == "id" and "\n" not in str(error) and len(str(error)) < 400
            continue
        outcomes["taken"] += 1
        assert found.tolist() == whole and len(set(whole)) == len(whole)
        assert all(isinstance(one, (int, str, np.integer)) and not isinstance(one, bool) for one in whole)
        assert found.dtype in (np.int64, np.uint64, object)
    assert min(outcomes.values()) > 200 * SCALE, outcomes
