"""TOML texts: values as they are written, a file as a mapping."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from python_model.io.errors import DataError, one_line
from python_model.io.files import reading

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def toml_value(value: Any) -> str:
    """A text, number, truth value, sequence or mapping of such as TOML has it on one line."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {toml_value(one)}" for name, one in value.items()) + "}"
    # TOML uses JSON's escapes, except that TOML requires DEL to be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_table(name: str, values: Mapping[str, Any]) -> str:
    """A table with one line a value; values that are None are left out."""
    lines = [f"{_key(key)} = {toml_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines]) + "\n"


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file; DataError where it cannot be read or is no TOML. what: it is expected to hold."""
    with reading(file):
        content = file.read_bytes()
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(file, f"expected {what} in TOML: {one_line(error)}") from error


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)
