"""Strict reading of JSON from other programs, with one clear error for any fault.

Python's own reader raises RecursionError for deep nesting, accepts NaN and Infinity, which are not JSON, and silently
takes the last of two equal keys.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from python_model.io.errors import DataError

MAX_DEPTH = 64
"""Deepest nesting of arrays and objects; no format of this package needs ten levels."""


def parse(text: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8, and a leading byte order mark is skipped.

    ValueError, one sentence, for text that is not UTF-8, not JSON, nested deeper than MAX_DEPTH, with a key twice in
    one object, or with a number that is not JSON (NaN, Infinity) or does not fit float64.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"expected UTF-8, found the byte 0x{text[error.start]:02x} at {error.start}") from None
    _require_shallow(text)
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as error:
        found = repr(text[error.pos : error.pos + 20]) if error.pos < len(text) else "the end of the text"
        line = f"line {error.lineno}, " if "\n" in text.rstrip("\n") else ""
        raise ValueError(f"expected JSON, found {found} at {line}column {error.colno} ({error.msg})") from None


def read_object(file: Path, what: str = "a JSON object") -> dict[str, Any]:
    """The JSON object of a file; DataError where it is missing, cannot be read or is not an object.

    what: the expected content, named in the error for a missing file.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(file, f"not found: expected {what}") from error
    except NotADirectoryError as error:
        above = next(one for one in file.parents if one.exists())
        raise DataError(above, "is a file, expected a directory") from error
    except OSError as error:
        raise DataError(file, f"cannot be read: {error.strerror}") from error
    try:
        found = parse(content)
    except ValueError as error:
        raise DataError(file, str(error)) from error
    if not isinstance(found, dict):
        raise DataError(file, f"expected a JSON object, found {kind_of(found)}")
    return found


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "an array", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _require_shallow(text: str) -> None:
    depth, inside, escaped = 0, False, False
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"expected JSON nested at most {MAX_DEPTH} deep, found more")
        elif character in "]}":
            depth -= 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"expected every key once, found {twice!r} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON, found {name}")


def _integer(digits: str) -> int:
    # Python refuses more digits than sys.get_int_max_str_digits(), with a message about its own setting.
    if len(digits) > 40:
        raise ValueError(f"expected a number of at most 40 digits, found {len(digits)}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"expected a number that float64 holds, found {digits[:40]}")
    return value


_decoder = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite
)
