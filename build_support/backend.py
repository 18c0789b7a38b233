"""The build backend of pyproject.toml: setuptools', and before it one sentence about everything that is missing.

With build isolation pip installs what `get_requires_for_build_wheel` names. Without native libraries (ARGUS_NATIVE=0)
and for a source distribution that is setuptools alone, so that torch is not downloaded a second time.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from build_support import tools
from build_support.decide import BuildError

Settings = dict[str, Any] | None


def _setuptools() -> ModuleType:
    """The backend of setuptools; ends the process with a sentence where anything that a build needs is missing."""
    try:
        tools.require(os.environ)
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None
    from setuptools import build_meta

    return build_meta


def _requirements() -> list[str]:
    try:
        return list(tools.PACKAGES) if tools.native_wanted(os.environ) else []
    except BuildError as error:
        raise SystemExit(f"error: {error}") from None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What a wheel needs beside setuptools."""
    return _requirements()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """What an editable install needs beside setuptools."""
    return _requirements()


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """A source distribution compiles nothing."""
    return []


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The source distribution."""
    from setuptools import build_meta

    return str(build_meta.build_sdist(sdist_directory, config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """The metadata of a wheel."""
    return str(_setuptools().prepare_metadata_for_build_wheel(metadata_directory, config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    """The metadata of an editable install."""
    return str(_setuptools().prepare_metadata_for_build_editable(metadata_directory, config_settings))


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel, with the native libraries compiled."""
    return str(_setuptools().build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """An editable install, with the native libraries beside the sources."""
    return str(_setuptools().build_editable(wheel_directory, config_settings, metadata_directory))
