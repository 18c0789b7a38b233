"""Files and directories that appear under their name when they are complete, or not at all."""

from python_model.io.disk import whole_file
from python_model.io.publish import whole_directory

__all__ = ["whole_directory", "whole_file"]
