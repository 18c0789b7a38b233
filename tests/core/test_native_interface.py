"""A library whose ops take other arguments than this Python code gives them is noticed when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "argus_kernels" / "_ops_cpu.so"
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="_ops_cpu.so was not built")


def lines(program: str) -> list[str]:
    """What a fresh process prints, in which no library is loaded yet."""
    start = "import torch\nfrom argus_kernels.core import native\n"
    done = warm.python(["-c", start + program])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_interface_is_that_of_the_library() -> None:
    known, found = lines(
        f"torch.ops.load_library({str(LIBRARY)!r})\nprint(native.INTERFACE)\nprint(native.interface())\n"
    )
    assert known == found, f"core/native.py has INTERFACE {known}, and the library {found}"


def test_a_library_of_another_version() -> None:
    """One sentence with the command that builds it again; "auto" takes the reference."""
    sentence, refusal, served = lines(
        "from argus_kernels import causal_attention\n"
        "native.INTERFACE = 'another'\n"
        "print(native.why_not('cpu'))\n"
        "q = torch.ones(2, 1, 4)\n"
        "call = (q, q, q, torch.tensor([0, 2]))\n"
        "try:\n"
        "    causal_attention(*call, backend='cpp')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print(tuple(causal_attention(*call).shape))\n"
    )
    assert sentence == (
        "_ops_cpu.so was built from another version of csrc: its ops take other arguments; run "
        f"`python setup.py build_ext --inplace` in {REPOSITORY}"
    )
    assert refusal == f"causal_attention[cpp]: {sentence}"
    assert served == "(2, 1, 4)"
