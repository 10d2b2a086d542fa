import json

import pytest

from benchmarks import contention, harness


def test_sides_run_in_turn_and_the_medians_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    clock, order = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def takes(side, *seconds):
        each = iter(seconds)

        def work():
            order.append(side)
            clock[0] += next(each)

        return work

    sides = {
        "ours": (takes("ours", 1, 2, 9), 10),
        "theirs": (takes("theirs", 4, 5, 6), 10),
        "bound": (takes("bound", 1, 1, 1), 10),
    }
    result = harness.compare("x", sides, "rows/s", rounds=1, notes={"rows": 10})
    assert sorted(order[:3]) == sorted(order[3:6]) == sorted(order[6:]) == ["bound", "ours", "theirs"]
    assert order[0] != order[3]  # no side always goes first
    assert {key: result[key] for key in ("name", "ours", "peer", "peer_name", "unit", "ratio", "bound", "of_bound")} == {
        "name": "x", "ours": 5.0, "peer": 2.0, "peer_name": "theirs", "unit": "rows/s", "ratio": 2.5, "bound": 10.0, "of_bound": 0.5,
    }  # fmt: skip
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == result == json.loads((tmp_path / "x.json").read_text())
    assert result["rounds"] == 3 and result["rows"] == 10


@pytest.mark.slow
def test_training_beside_a_busy_process_takes_the_setting_and_ends(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # the shell's own setting would hide those that are compared
    seen = []
    real = contention.subprocess.run
    monkeypatch.setattr(
        contention.subprocess, "run", lambda *a, **options: seen.append(options["env"]) or real(*a, **options)
    )
    assert contention.measure({"OMP_WAIT_POLICY": "passive"}, 0.2, True) > 0
    assert seen[0]["OMP_WAIT_POLICY"] == "passive" and not {"GOMP_SPINCOUNT", "OMP_NUM_THREADS"} & set(seen[0])
