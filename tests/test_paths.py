import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from drot_utils.errors import DrotError, MissingInputError, StorageError
from drot_utils.paths import (
    ROOT,
    Run,
    atomic,
    exclusive,
    replace_folder,
    require,
    resolve,
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
        "import sys,time,pathlib;from drot_utils.paths import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1]), wait=False): print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(DrotError, match="another process is at work"),
            exclusive(lock, wait=False, what="at work"),
        ):
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
