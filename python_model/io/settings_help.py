"""Lists the settings of a configuration or a reader, one line each: name, default, range and meaning.

The meaning is read from the owner's docstring: the text after `name:` or `name, other:`, up to the next name or
paragraph.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from python_model.io.settings import expected, settings_of

ASKED = "help"
"""`--set help` asks for the list."""


def asked(assignments: Sequence[str] | None) -> bool:
    """Whether one of the --set options asks for the list of settings."""
    return any(text.strip() == ASKED for text in assignments or ())


def meanings(owner: Callable[..., Any]) -> dict[str, str]:
    """The meaning of each setting from the docstring of a dataclass or function; "" where it has none."""
    names = list(settings_of(owner))
    word = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    start = re.compile(rf"(?:(?<=[.;] )|(?<=\n)|^)((?:{word})(?:(?:, | and )(?:{word}))*): ", re.MULTILINE)
    found = dict.fromkeys(names, "")
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(owner.__doc__ or "")):
        heads = list(start.finditer(paragraph))
        for head, after in zip(heads, [*heads[1:], None], strict=False):
            text = paragraph[head.end() : after.start() if after else len(paragraph)]
            for name in re.split(r", | and ", head[1]):
                found[name] = " ".join(text.split()).rstrip(".;")
    return found


def listing(*owners: Callable[..., Any], without: Collection[str] = ()) -> str:
    """One line per setting, `name=default  meaning (kind)`, in the order of definition."""
    lines = []
    for owner in owners:
        said, defaults = meanings(owner), _defaults(owner)
        for name, kind in settings_of(owner).items():
            if name in without:
                continue
            given = f"{name}={_shown(defaults[name])}" if name in defaults else name
            sort = _kind(kind)
            lines.append((given, f"{said[name]} ({sort})" if sort else said[name]))
    width = min(34, max((len(given) for given, _ in lines), default=0))
    return "\n".join(f"{given:<{width}}  {text}" for given, text in lines)


def _kind(annotation: Any) -> str:
    """The kind of a value in words; "" for text, whose choices the meaning names."""
    return "" if annotation is str else expected(annotation)


def _defaults(owner: Callable[..., Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(owner):
        out = {}
        for field in dataclasses.fields(owner):
            if field.default is not dataclasses.MISSING:
                out[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                out[field.name] = field.default_factory()
        return out
    parameters = inspect.signature(owner).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def _shown(value: Any) -> str:
    """A default as --set takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(list(value)) if isinstance(value, tuple) else str(value)
