"""Settings by name: every kind of annotation takes what it says and refuses the rest in one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from python_model.io.settings import Between, OneOf, checked, checked_settings, settings_of

FORM = Literal["flat", "sequential"]
RIGHT = [
    (bool, True, True),
    (int, 3, 3),
    (int, -(2**63), -(2**63)),
    (float, 3, 3.0),
    (float, 2.5, 2.5),
    (str, "", ""),
    (FORM, "flat", "flat"),
    (int | None, None, None),
    (int | None, 4, 4),
    (tuple[int, ...], [1, 2], (1, 2)),
    (tuple[int, str], [1, "a"], (1, "a")),
    (Mapping[str, float], {"like": 2}, {"like": 2.0}),
    (Annotated[int, Between(1, 5)], 5, 5),
    (Annotated[float, Between(0, 1, below=True)], 0, 0.0),
    (Any, [None], [None]),
]
WRONG: list[tuple[Any, list[Any], str]] = [
    (bool, [1, 0, "true", None, 1.0], "true or false"),
    (int, [True, 1.0, 1.5, "1", "abc", None, [], {}, 2**63, 10**400, float("nan")], "a whole number"),
    (float, [True, "1", None, float("nan"), float("inf"), -float("inf"), 10**400, [1.0]], "a finite number"),
    (str, [1, None, ["a"], b"a"], "text"),
    (FORM, ["Flat", "", None, 0, ["flat"]], "one of flat, sequential"),
    (Literal[1], [True, 1.0, "1"], "1"),
    (int | None, ["null", 0.5], "a whole number or null"),
    (tuple[int, ...], [1, "12", [1, "2"], {"1": 2}], "a list, each a whole number"),
    (tuple[int, str], [[1], [1, "a", 2], ["a", 1]], "a list of 2: a whole number, text"),
    (Mapping[str, float], [1, [], {"like": "a"}, {"like": None}, {1: 1.0}], "a mapping from text to a finite number"),
    (Mapping[str, Any], [[], {1: 2}], "a mapping from text to any value"),
    (Annotated[int, Between(1, 5)], [0, 6, "3", 2.0, None], r"a whole number in \[1, 5\]"),
    (Annotated[str, OneOf(("flat", "tall"))], ["Flat", "", None, ["flat"]], "one of flat, tall"),
    (Annotated[int, Between(1)], [0, -1], "a whole number of at least 1"),
    (Annotated[float, Between(0, 1, below=True)], [1, -1e-9, float("nan")], r"a finite number in \[0, 1\)"),
]


@pytest.mark.parametrize(("kind", "value", "expected"), RIGHT)
def test_what_fits_comes_back_in_the_kind(kind: Any, value: Any, expected: Any) -> None:
    found = checked(kind, "setting", value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(("kind", "value", "words"), [(k, v, words) for k, values, words in WRONG for v in values])
def test_what_does_not_fit_is_one_sentence(kind: Any, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^layers is .*, expected {words}$") as caught:
        checked(kind, "layers", value)
    assert len(str(caught.value)) < 300


@dataclass(frozen=True)
class Config:
    width: int = 8
    rate: Annotated[float, Between(0)] = 0.5


def reader(path: str, *, size: FORM = "flat", width: int = 3) -> None:
    """A function with two settings."""


def test_settings_are_fields_and_keyword_only_parameters() -> None:
    assert list(settings_of(Config)) == ["width", "rate"]
    assert settings_of(reader) == {"size": FORM, "width": int}
    assert checked_settings(Config, {"rate": 1}, "the model") == {"rate": 1.0}


def test_a_number_of_endless_digits_is_said_in_short() -> None:
    with pytest.raises(ValueError, match=r"^seed is a whole number of 16610 bits, expected a whole number$"):
        checked(int, "seed", 10**5000)


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^the source: unknown setting depth; known: size, width$"):
        checked_settings(reader, {"depth": 3}, "the source")


def test_an_annotation_of_another_kind_is_a_mistake_of_the_code() -> None:
    with pytest.raises(TypeError, match="of no kind that settings have"):
        checked(set[int], "layers", {1})
