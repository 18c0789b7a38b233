"""Programs in processes of their own that have torch already: importing it is most of what a small program takes.

One process a test process imports torch, and nothing of this package, and forks one for each program.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SERVER = """
import json, os, runpy, sys, tempfile, traceback
import torch

def run(words, environment, folder):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    option, name, *rest = words
    sys.argv = [name, *rest]
    if option == "-c":
        exec(compile(name, "<program>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")

def ended(words, environment, folder, files):
    for place, file in enumerate((open(os.devnull), *files)):
        os.dup2(file.fileno(), place)
    try:
        run(words, environment, folder)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            ended(*json.loads(line), (out, error))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, error):
            file.seek(0)
            texts.append(file.read().decode())
        print(json.dumps([status, *texts]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def python(
    words: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """What `python *words` gives in `folder`: ["-c", program], ["-m", module, …] or ["--", file, …].

    environment: the whole of it; None for that of this process. What Python or OpenMP reads when it starts, such as
    PYTHONIOENCODING and OMP_NUM_THREADS, is that of the test process.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    asked = [list(words), dict(os.environ if environment is None else environment), str(folder)]
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the process that has torch has ended"
    return subprocess.CompletedProcess([sys.executable, *words], *json.loads(answer))
