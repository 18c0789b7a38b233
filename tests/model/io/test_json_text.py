"""JSON from elsewhere: right values, or one sentence for each thing that can be wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from python_model.io.errors import DataError
from python_model.io.json_text import parse, read_object


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 200_000, "nested at most 64 deep"),
        ('{"a":' * 200_000, "nested at most 64 deep"),
        (b"\xff\xfe", "expected UTF-8, found the byte 0xff at 0"),
        ("not json", "expected JSON, found 'not json' at column 1"),
        ("", "expected JSON, found the end of the text"),
        ('{"a": NaN}', "found NaN"),
        ("-Infinity", "found -Infinity"),
        ('{"a": 1, "a": 2}', "found 'a' twice"),
        ("9" * 5000, "at most 40 digits"),
        ("1e999", "a number that float64 holds"),
        ('{"a": 1} x', "expected JSON, found 'x'"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^expected") as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_brackets_within_text_are_not_nesting() -> None:
    long = "[" * 500 + '\\"' + "{" * 500
    assert parse(f'["{long}"]') == ["[" * 500 + '"' + "{" * 500]


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse(b"\xef\xbb\xbf[1]") == [1]


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_text_is_a_value_or_a_sentence(text: str | bytes) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert "expected" in str(error)


def test_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "store.json"
    with pytest.raises(DataError, match=r"store\.json: not found: expected a store"):
        read_object(file, "a store")
    for content, found in ((b"[1]", "found an array"), (b"\xff", "expected UTF-8"), (b"null", "found null")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=found):
            read_object(file)
    file.write_text('{"a": [1, 2.5, null]}')
    assert read_object(file) == {"a": [1, 2.5, None]}
