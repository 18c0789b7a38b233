"""`python -m benchmarks`."""

from python_model import extras

extras.require("benchmarks", "bench")

from benchmarks.cli import main  # noqa: E402

main()
