"""A short form of `make chaos`: the study's first half, killed twice."""

import subprocess
import sys

from chaos import differences, files_of

from drot_utils.study.paths import ROOT


def test_killed_and_started_again_it_ends_with_the_same_bytes():
    command = [
        sys.executable,
        "tests/chaos.py",
        "--quick",
        "--kills",
        "2",
        "--longest",
        "15",
        "--until",
        "04_distill_base",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout and "no difference" in done.stdout


def test_the_comparison_can_fail(tmp_path):
    for name, text in (("one", "a"), ("other", "b")):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "x.csv").write_text(text)
        (tmp_path / name / "manifest.json").write_text(name)
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert differences(one, other) == ["data/x.csv"] and differences(one, one) == []
    assert differences(one, {}) == ["data/x.csv"]
