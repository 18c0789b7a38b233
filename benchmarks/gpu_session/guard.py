"""Kills the process groups of a session whose conductor has ended; the conductor starts it beside the steps.

It reads `+ID` and `-ID`, a process group that began and one that ended, from its standard input. The input ends with
the conductor, however that was killed; then the groups that still run are killed too.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Waits for the end of the input."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
