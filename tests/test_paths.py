"""Tests of `paths`."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from drot_utils.study import paths
from drot_utils.study.errors import DrotError, MissingInputError, StorageError
from drot_utils.study.paths import (
    ROOT,
    Run,
    atomic,
    exclusive,
    file_system,
    output_root,
    replace_folder,
    require,
    resolve,
    settle_output,
    sha256,
    write_text,
)


def test_one_run_is_one_directory(output):
    run = Run("demo")
    for path in (run.data("d0"), run.model("critic"), run.work("x"), run.manifest):
        assert path.is_relative_to(output / "runs" / "demo")
    assert run.figures == output / "figures" / "demo"


def test_relative_paths_are_below_the_checkout(tmp_path):
    assert resolve("params/demo.yaml") == ROOT / "params/demo.yaml"
    assert resolve(tmp_path) == tmp_path


def test_missing_input_names_the_notebook(tmp_path):
    with pytest.raises(MissingInputError, match=r"02_critic\.ipynb"):
        require(tmp_path / "critic", "02_critic")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ValueError, match="stop"), atomic(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, full_disk):
    with full_disk(1000), pytest.raises(StorageError, match="free some space"):
        write_text(tmp_path / "big.txt", "x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_model_and_no_half_of_the_new(tmp_path, full_disk):
    folder = replace_folder(tmp_path / "m", lambda place: (place / "a").write_text("old"))
    weights = {"w": torch.zeros(5000)}
    with full_disk(1000), pytest.raises(StorageError, match="free some space"):
        replace_folder(folder, lambda place: save_file(weights, place / "a"))
    assert (folder / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_lock_refuses_a_second_holder_and_is_free_after_a_kill(tmp_path):
    code = (
        "import sys,time,pathlib;from drot_utils.study.paths import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), wait=False): print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DrotError, match="another process is at work"), exclusive(lock, wait=False, what="at work"):
            pass
        os.kill(other.pid, 9)
        other.wait()
    with exclusive(lock, wait=False):
        pass


def test_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c14")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "m"
    replace_folder(folder, lambda place: (place / "a").write_text("old"))

    def fails(place):
        (place / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        replace_folder(folder, fails)
    assert (folder / "a").read_text() == "old"


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_fills_is_not(tmp_path):
    mine, live, dead = (tmp_path / f".m.{number}.tmp" for number in (os.getpid(), os.getppid(), 2**22 + 1))
    for place in (mine, live, dead):
        place.mkdir()
    replace_folder(tmp_path / "m", lambda place: (place / "a").write_text("new"))
    assert {path.name for path in tmp_path.iterdir()} == {"m", live.name}


def test_output_is_absolute_once_and_never_empty(tmp_path, monkeypatch):
    monkeypatch.delenv("DROT_OUTPUT")
    settle_output()
    assert output_root() == ROOT
    monkeypatch.setenv("DROT_OUTPUT", "")
    settle_output()
    with pytest.raises(DrotError, match=r"DROT_OUTPUT.*found ''\n.*unset it"):
        output_root()
    monkeypatch.setenv("DROT_OUTPUT", "out")
    with pytest.raises(DrotError, match="absolute path"):  # which folder it starts from, nobody knows here
        Run("demo").data("d0")
    monkeypatch.chdir(tmp_path)
    settle_output()
    monkeypatch.chdir("/")
    assert output_root() == tmp_path / "out"


def test_a_folder_that_may_not_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "runs").write_text("")
    with (
        pytest.raises(StorageError, match=r"runs/work/\.lock.*\n.*DROT_OUTPUT"),
        exclusive(tmp_path / "runs" / "work" / ".lock", wait=False),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_takes_the_locks_place_where_there_are_none(tmp_path, no_locks, number):
    no_locks(number)
    lock, held = tmp_path / "lock", tmp_path / "lock.held"
    with pytest.warns(UserWarning, match=r"has no locks.*DROT_OUTPUT"), exclusive(lock, wait=False) as got:
        assert got is None and held.read_text().split()[0] == str(os.getpid())
        with (
            pytest.warns(UserWarning),
            pytest.raises(DrotError, match=rf"lock\.held: another process is at work .*{os.getpid()}"),
            exclusive(lock, wait=False, what="at work"),
        ):
            pass
    assert {p.name for p in tmp_path.iterdir()} == {"lock"}


@pytest.mark.filterwarnings("ignore:.*has no locks")
def test_a_lock_file_of_a_killed_process_is_taken_over_and_another_machines_is_not(tmp_path, no_locks, monkeypatch):
    no_locks(errno.ENOSYS)
    code = (
        "import errno,fcntl,sys,time,pathlib;from drot_utils.study.paths import exclusive\n"
        "def no(*_): raise OSError(errno.ENOSYS, 'no')\n"
        "fcntl.flock = no\n"
        "with exclusive(pathlib.Path(sys.argv[1]), wait=True): print('held', flush=True); time.sleep(60)"
    )
    lock, held = tmp_path / "lock", tmp_path / "lock.held"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DrotError, match="another process"), exclusive(lock, wait=False):
            pass
        os.kill(other.pid, 9)
        other.wait()
    with exclusive(lock, wait=False):
        pass
    # A later process with the number of the dead one, as in a container that was started again.
    held.write_text(f"{os.getpid()}\n{socket.gethostname()}\n1\n")
    with exclusive(lock, wait=False):
        pass
    monkeypatch.setattr(paths, "PATIENCE", 0.2)
    held.write_text("1\nelsewhere\n1\n")
    for wait in (True, False):
        with pytest.raises(DrotError, match=r"1 elsewhere 1.*\n.*remove this file"), exclusive(lock, wait=wait):
            pass
    assert held.read_text() == "1\nelsewhere\n1\n"


def test_one_process_at_a_time_takes_a_dead_ones_lock_over(tmp_path):
    code = (
        "import errno,fcntl,sys,time,pathlib;from drot_utils.study.paths import exclusive\n"
        "def no(*_): raise OSError(errno.ENOSYS, 'no')\n"
        "fcntl.flock = no\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "for _ in range(40):\n"
        "    with exclusive(place / 'lock', wait=True):\n"
        "        n = int((place / 'n').read_text()); time.sleep(.001); (place / 'n').write_text(str(n + 1))\n"
    )
    (tmp_path / "n").write_text("0")
    (tmp_path / "lock.held").write_text(f"{os.getpid()}\n{socket.gethostname()}\n1\n")
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "120"


def test_the_kind_of_file_system():
    assert file_system(Path("/proc/self")) == "proc"
