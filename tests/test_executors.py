import os
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from drot_utils.errors import DrotError
from drot_utils.settings import Executor
from drot_utils.shards import map_shards

LOCAL = Executor(kind="local", workers=1, address=None)


def open_work():
    return work


def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    time.sleep(0.01 * (seed % 5))  # so that shards do not end in the order in which they began
    return pd.DataFrame({"x": part["x"] * 10, "seed": seed})


def open_suicide(mark: Path):
    return partial(suicide, mark)


def suicide(mark: Path, part: pd.DataFrame, seed: int) -> pd.DataFrame:
    if part["x"].iloc[0] == 4 and not mark.exists():
        mark.write_text("once")
        os.kill(os.getpid(), signal.SIGKILL)
    return work(part, seed)


def run(folder, executor, opened=open_work, n=11):
    rows = pd.DataFrame({"x": range(n)})
    return map_shards(rows, 2, opened, folder, seed=3, stage="test", executor=executor)


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_processes_give_the_rows_of_one(tmp_path, workers):
    expected = run(tmp_path / "local", LOCAL)
    found = run(tmp_path / "many", Executor(kind="processes", workers=workers, address=None))
    pd.testing.assert_frame_equal(found, expected)
    for path in (tmp_path / "local").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()


def test_a_killed_worker_is_a_clear_error_and_nothing_is_lost(tmp_path):
    executor = Executor(kind="processes", workers=2, address=None)
    opened = partial(open_suicide, tmp_path / "mark")
    with pytest.raises(DrotError, match="finished shards are kept"):
        run(tmp_path / "s", executor, opened)
    pd.testing.assert_frame_equal(run(tmp_path / "s", executor, opened), run(tmp_path / "local", LOCAL))


def test_ray_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(DrotError, match="make extras"):
        run(tmp_path, Executor(kind="ray", workers=2, address=None))


@pytest.mark.slow
def test_ray_gives_the_rows_of_one_even_when_a_worker_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="extra: make extras")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its workers find this module
    executor = Executor(kind="ray", workers=2, address=None)
    found = run(tmp_path / "ray", executor, partial(open_suicide, tmp_path / "mark"))
    assert (tmp_path / "mark").exists()
    pd.testing.assert_frame_equal(found, run(tmp_path / "local", LOCAL))


def test_a_students_samples_are_the_same_from_several_processes(study, actions):
    from drot_utils import models, writing

    model, tokenizer = models.build_tiny("tiny-llama")
    models.save(model, tokenizer, study.run.model("distill_base"), study.dtype)
    expected = writing.write_contexts(study, "distill_base", actions.head(8), "round_1", 2, "nucleus")
    compute = study.params.compute.model_copy(
        update={"executor": Executor(kind="processes", workers=2, address=None)}
    )
    study.params = study.params.model_copy(update={"compute": compute})
    for path in study.run.work("shards").rglob("*.parquet"):
        path.unlink()
    pd.testing.assert_frame_equal(
        writing.write_contexts(study, "distill_base", actions.head(8), "round_1", 2, "nucleus"), expected
    )
