"""Directories that appear whole, whatever lies at their name and whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from python_model.io import publish
from python_model.io.disk import WriteError
from python_model.io.exclusive import InUseError, replacing
from python_model.io.names import hidden
from python_model.io.publish import recover, require_place, scratch, whole_directory

MARKER = "about.json"


def make(out: Path, text: str = "new", *, overwrite: bool = False) -> None:
    with whole_directory(out, MARKER, overwrite=overwrite) as partial:
        (partial / "part").mkdir()
        (partial / "part" / "rows").write_text(text)
        (partial / MARKER).write_text(text)


def content(out: Path) -> str:
    """The text that all files of `out` have; fails where they differ or one is missing."""
    assert sorted(os.listdir(out)) == [MARKER, "part"]
    texts = {(out / MARKER).read_text(), (out / "part" / "rows").read_text()}
    assert len(texts) == 1, texts
    return texts.pop()


class TestPlaces:
    def test_a_new_name_and_missing_directories_above(self, tmp_path: Path) -> None:
        make(tmp_path / "a" / "b" / "out")
        assert content(tmp_path / "a" / "b" / "out") == "new" and os.listdir(tmp_path / "a" / "b") == ["out"]

    @pytest.mark.parametrize("spelling", ["out", "out/", "out/.", "x/../out", "./out"])
    def test_an_empty_directory_stays_the_same_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("x").mkdir()
        Path("out").mkdir(mode=0o750)
        before = os.stat("out")
        make(Path(spelling))
        assert content(tmp_path / "out") == "new"
        assert os.stat("out").st_ino == before.st_ino and os.stat("out").st_mode == before.st_mode

    @pytest.mark.parametrize("spelling", [".", "./", "..", "../here", ""])
    def test_the_current_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
        here = tmp_path / "up" / "here"
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        if spelling == "..":
            with pytest.raises(FileExistsError, match="not empty"):
                make(Path(spelling))
            return
        make(Path(spelling))
        assert content(here) == "new" and sorted(os.listdir(".")) == [MARKER, "part"]

    def test_a_link_stays_and_what_it_names_is_filled(self, tmp_path: Path) -> None:
        big, link = tmp_path / "big", tmp_path / "link"
        big.mkdir()
        link.symlink_to("big")
        make(link)
        assert link.is_symlink() and content(big) == "new"
        assert sorted(os.listdir(tmp_path)) == ["big", "link"]
        make(link, "newer", overwrite=True)
        assert link.is_symlink() and content(big) == "newer"
        assert sorted(os.listdir(tmp_path)) == ["big", "link"]

    @pytest.mark.parametrize(
        ("prepare", "sentence"),
        [
            (lambda out: out.symlink_to("nowhere"), "it is a link to nowhere, which is not there; make that first"),
            (lambda out: out.symlink_to(out.name), "it is a link to out, which is not there"),
            (lambda out: out.write_text("x"), "is a file, expected a directory"),
            (lambda out: os.mkfifo(out), "is a file, expected a directory"),
            (lambda out: (out.mkdir(), (out / "x").mkdir()), "not empty: choose another directory or pass --overwrite"),
        ],
        ids=["dangling", "loop", "file", "fifo", "taken"],
    )
    def test_what_is_refused(self, tmp_path: Path, prepare: Callable[[Path], object], sentence: str) -> None:
        prepare(tmp_path / "out")
        before = sorted(path.as_posix() for path in tmp_path.rglob("*"))
        with pytest.raises(OSError, match=sentence):
            make(tmp_path / "out")
        assert sorted(path.as_posix() for path in tmp_path.rglob("*")) == before

    def test_a_link_to_a_file_and_a_parent_that_is_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "link").symlink_to("file")
        with pytest.raises(FileExistsError, match="link is a file, expected a directory"):
            make(tmp_path / "link")
        with pytest.raises(WriteError, match=r"out: cannot be written, .*file is no directory; choose another place"):
            make(tmp_path / "file" / "out")

    def test_names_of_any_length_and_letters(self, tmp_path: Path) -> None:
        for name in ("n" * 255, "é" * 127, "two\nlines", "a b", "-", ".hidden", "…"):
            for text in ("old", "new"):
                make(tmp_path / name, text, overwrite=True)
                assert content(tmp_path / name) == text
        assert len(os.listdir(tmp_path)) == 7
        with pytest.raises(WriteError, match="file name too long; choose another place"):
            make(tmp_path / ("n" * 256))
        with pytest.raises(WriteError, match="its name is not UTF-8"):
            make(tmp_path / "\udcff")

    def test_only_what_this_command_made_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
        with pytest.raises(FileExistsError, match=f"has no {MARKER}: it was not made by this command"):
            make(tmp_path / "out", overwrite=True)
        assert os.listdir(tmp_path / "out") == ["thesis.tex"]

    def test_the_current_directory_is_not_replaced_under_ones_feet(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make(tmp_path / "out", "old")
        monkeypatch.chdir(tmp_path / "out" / "part")
        with pytest.raises(WriteError, match="the current directory lies in it"):
            make(tmp_path / "out", overwrite=True)
        assert content(tmp_path / "out") == "old"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_mount_point(self, tmp_path: Path, overwrite: bool) -> None:
        out = tmp_path / "out"
        out.mkdir()
        mounted = shutil.which("mount") and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)], capture_output=True, check=False
        )
        if not mounted or mounted.returncode:
            pytest.skip("needs the right to mount a file system")
        try:
            make(out, "old")
            assert content(out) == "old" and os.path.ismount(out)
            if overwrite:
                with pytest.raises(WriteError, match="a mount point cannot be replaced as a whole; empty it"):
                    make(out, overwrite=True)
        finally:
            subprocess.run(["umount", "-l", str(out)], check=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_parent_that_may_not_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(WriteError, match="may not be written to; choose another place"):
                make(tmp_path / "out")
            make(tmp_path / "empty")
            assert content(tmp_path / "empty") == "new"
        finally:
            tmp_path.chmod(0o700)


def test_a_failure_leaves_nothing_and_an_old_one_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "old", "old")
    (tmp_path / "empty").mkdir()
    for name in ("old", "empty", "new"):
        with (
            pytest.raises(KeyboardInterrupt),
            whole_directory(tmp_path / name, MARKER, overwrite=True) as partial,
        ):
            (partial / "half").write_text("x")
            raise KeyboardInterrupt
    assert content(tmp_path / "old") == "old" and os.listdir(tmp_path / "empty") == []
    assert sorted(os.listdir(tmp_path)) == ["empty", "old"]


@pytest.mark.parametrize("there", [False, True])
def test_a_second_one_is_refused_by_the_name_of_the_first(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with whole_directory(out, MARKER) as partial:
        (partial / MARKER).write_text("x")
        with pytest.raises(InUseError, match=f"out is in use by process {os.getpid()}"), whole_directory(out, MARKER):
            pass
    assert os.listdir(out) == [MARKER] and os.listdir(tmp_path) == ["out"]
    with scratch(tmp_path / "b"), pytest.raises(InUseError, match="b is in use"), scratch(tmp_path / "b"):
        pass


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileExistsError, match="not empty"), whole_directory(out, MARKER) as partial:
        (partial / MARKER).write_text("x")
        out.mkdir()
        (out / "theirs").write_text("x")
    assert os.listdir(out) == ["theirs"] and os.listdir(tmp_path) == ["out"]


def killed_at(call: int, work: Callable[[], None], exchange: bool) -> bool:
    """Run `work` in a child that SIGKILL ends at its n-th step on the disk; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = [call]

        def deadly(function: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **options: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return step

        os.rename, os.replace, os.mkdir = deadly(os.rename), deadly(os.replace), deadly(os.mkdir)  # type: ignore[assignment]
        os.rmdir, os.unlink, os.fsync = deadly(os.rmdir), deadly(os.unlink), deadly(os.fsync)  # type: ignore[assignment]
        publish._exchange = deadly(publish._exchange if exchange else (lambda one, other: False))  # type: ignore[assignment]
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", ["missing", "empty", "whole"])
def test_a_kill_at_any_step_loses_nothing(tmp_path: Path, before: str, exchange: bool) -> None:
    """After a kill the old directory or the new one is whole, at once or once the next command has looked."""
    steps, seen = 0, set()
    for steps in range(1, 200):
        out = tmp_path / f"{steps}" / "out"
        out.parent.mkdir()
        if before == "empty":
            out.mkdir()
        elif before == "whole":
            make(out, "old")
        killed = killed_at(steps, lambda out=out: make(out, overwrite=True), exchange)  # type: ignore[misc]
        recover(out, MARKER)
        found = content(out) if (out / MARKER).is_file() else None
        seen.add(found)
        assert found in ({"old", "new"} if before == "whole" else {None, "new"}), f"step {steps}"
        make(out, "next", overwrite=True)
        assert content(out) == "next" and os.listdir(out.parent) == ["out"], f"step {steps}"
        if not killed:
            break
    assert 8 < steps < 199 and len(seen) == 2


def test_advice_of_the_page_on_hidden_directories_never_removes_the_last_copy(tmp_path: Path) -> None:
    """`.NAME.argus-partial` may go at any moment: what is whole is NAME or, where NAME is not there, `.NAME.old`."""
    for steps in range(1, 200):
        out = tmp_path / f"{steps}" / "out"
        make(out, "old")
        killed = killed_at(steps, lambda out=out: make(out, overwrite=True), exchange=False)  # type: ignore[misc]
        shutil.rmtree(hidden(out, publish.PARTIAL), ignore_errors=True)
        recover(out, MARKER)
        assert content(out) in {"old", "new"}
        if not killed:
            return


def test_nothing_is_put_back_under_a_process_that_is_replacing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")
    os.rename(out, hidden(out, publish.OLD))
    with replacing(out):
        recover(out, MARKER)
        assert not out.exists()
    recover(out, MARKER)
    assert content(out) == "old"


def test_an_old_copy_is_kept_where_the_name_was_taken_by_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "old")
    os.rename(out, hidden(out, publish.OLD))
    out.mkdir()
    with pytest.raises(KeyboardInterrupt), whole_directory(out, MARKER):
        raise KeyboardInterrupt
    assert content(hidden(out, publish.OLD)) == "old"


def test_scratch_is_beside_or_inside_and_goes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with scratch(tmp_path / name) as space, whole_directory(tmp_path / name, MARKER) as partial:
            (space / "rows").write_text("x")
            (partial / MARKER).write_text("x")
            assert space.parent == (tmp_path / "empty" if name == "empty" else tmp_path)
        assert os.listdir(tmp_path / name) == [MARKER]
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]


def test_a_message_never_names_what_is_hidden(tmp_path: Path) -> None:
    for context in (whole_directory(tmp_path / "out", MARKER), scratch(tmp_path / "out")):
        with pytest.raises(OSError) as caught, context as directory:
            (directory / "x" / "y").write_text("x")
        assert (
            str(caught.value)
            == f"{tmp_path / 'out'}: cannot be written, no such file or directory; choose another place"
        )
    assert require_place(tmp_path / "out", MARKER) == tmp_path / "out"


@pytest.mark.parametrize("name", [publish.COMPLETE, publish.PARTIAL, ".complete", ".partial"])
def test_what_others_put_there_is_neither_moved_nor_removed(tmp_path: Path, name: str) -> None:
    """A link that somebody sends, or a hidden directory of another program."""
    mine = tmp_path / "mine"
    make(mine)
    make(tmp_path / "sent")
    (tmp_path / "sent" / name).symlink_to(mine)
    (tmp_path / ".gone.old").symlink_to(mine)
    for path in (tmp_path / "sent", tmp_path / "gone"):
        recover(path, MARKER)
    assert content(mine) == "new" and (tmp_path / "sent" / name).is_symlink() and not (tmp_path / "gone").exists()
    if not name.startswith(".argus"):
        (tmp_path / "kept" / name).mkdir(parents=True)
        (tmp_path / f".kept{name}").mkdir()
        with pytest.raises(FileExistsError, match="not empty"):
            make(tmp_path / "kept")
        make(tmp_path / "kept2")
        assert (tmp_path / "kept" / name).is_dir() and (tmp_path / f".kept{name}").is_dir()
