"""Tests of `forecast`: its arithmetic against times that are known, and what it says."""

import json
import os
import re
import subprocess
from dataclasses import replace

import pytest
from conftest import write_params

from drot_utils.study import forecast
from drot_utils.study.forecast import Machine, expect, finish_time, foresee, list_work, say
from drot_utils.study.graph import Stage, list_stages
from drot_utils.study.params import load_params

#: Two AVX2 cores, and two with AVX-512 bfloat16, whose rate is that of the products alone in benchmarks/results/training.json.
AVX2 = Machine("AVX2", 2, False, "float32", "no native bfloat16", 120e9)
AVX512 = Machine("AVX-512", 2, False, "bfloat16", "native", 1160e9)


def times(profile, machine):
    params = load_params(f"params/{profile}.yaml")
    stages = expect(list_stages(params), params, machine)
    return {stage.name: stage.seconds for stage in stages} | {"all": finish_time(stages, seconds(stages), 1)}


def seconds(stages):
    return {stage.name: stage.seconds for stage in stages}


@pytest.mark.parametrize(
    ("machine", "stage", "known"),
    [
        (AVX512, "all", 20 * 60 + 48), (AVX512, "all", 23 * 60), (AVX512, "06_final_dataset", 310),
        (AVX2, "all", 7200), (replace(AVX2, rate=165e9), "06_final_dataset", 1160), (replace(AVX2, rate=165e9), "04_distill_base", 758),
    ],
)  # fmt: skip
def test_the_demo_takes_what_it_took(machine, stage, known):
    assert known / 1.5 < times("demo", machine)[stage] < known * 1.5


def test_the_quick_profile_is_a_small_part_of_the_demo():
    demo, quick = (load_params(f"params/{name}.yaml") for name in ("demo", "quick"))
    work, less = (sum(w.operations for w in list_work(params, list_stages(params))) for params in (demo, quick))
    assert 1 / 10 < less / work < 1 / 4
    assert times("quick", AVX512)["all"] < 6.1 * 60 and times("quick", AVX2)["all"] < 25 * 60


def test_operations_are_counted_from_the_parameters(tmp_path):
    def work(**changes):
        params = load_params(write_params(tmp_path / "p.yaml", "demo", **changes))
        return {(w.stage, w.what): w for w in list_work(params, list_stages(params))}

    usual, more = work(), work(student__epochs=4, corpus__round_actions=[100, 100, 50], critic__max_steps=10)
    base, third = ("04_distill_base", "train Distill_base"), ("05_self_distill-3", "write: round 3")
    assert usual[base].operations == pytest.approx(6 * 1.35e8 * 956 * 2 * 40)
    assert more[base].operations == 2 * usual[base].operations
    assert third not in usual and more[third].count == 50 * 2 * 10
    assert more["05_self_distill-3", "train SelfDistill_3"].count == pytest.approx(1000 * 424 / 2000)
    assert more[third].operations == pytest.approx(2 * 1.35e8 * 1000 * (23 + 17 / 10))
    assert more["02_critic", "fit critic"].count == 10 * 32
    mpnet = {"source": "package", "name": "all-mpnet-base-v2"}
    frozen = work(critic__base=mpnet, critic__frozen_layers=8, critic__epochs=4)
    lower, upper = (frozen["02_critic", what] for what in ("frozen layers of critic", "fit critic"))
    assert lower.operations == pytest.approx(2 * 8.5e7 * 8 / 12 * 19 * lower.count)  # once a row, and forward only
    assert upper.operations == pytest.approx(6 * 8.5e7 * 4 / 12 * 19 * lower.count * 4)  # four epochs
    judged = work(judges__filter="judges")
    assert ("05_self_distill-1", "critic") not in judged
    assert judged["05_self_distill-1", "judges"].size == 1.35e8


def test_every_stage_of_every_profile_has_its_time():
    for profile in ("smoke", "quick", "demo", "paper"):
        assert all(taken > 0 for taken in times(profile, AVX2).values())


def test_several_gpus_share_what_can_be_shared():
    params = load_params("params/paper.yaml")
    one, eight = (Machine("H", n, True, "bfloat16", "native", 1e14) for n in (1, 8))
    fixed = seconds(list_stages(params))
    alone, shared = (seconds(expect(list_stages(params), params, machine)) for machine in (one, eight))
    for name in ("04_distill_base", "07_evaluation"):
        assert shared[name] - fixed[name] == pytest.approx((alone[name] - fixed[name]) / 8)
    assert shared["02_critic"] == alone["02_critic"]


PLAN = [Stage("a", (), (), 60), Stage("b", ("a",), (), 600), Stage("c", ("a",), (), 1200), Stage("d", ("a",), (), 300)]


def test_the_line_names_the_machine_the_time_and_the_three_longest():
    line = say(PLAN, AVX2)
    assert line == (
        "AVX2, 2 cores, float32 (no native bfloat16), 120 GFLOP/s measured: about 36 minutes; longest: c 20, b 10, d 5"
    )
    assert "about 21 minutes" in say(PLAN, AVX2, cores=2)  # a, then c beside b and d
    gpu = say(PLAN, Machine("T4", 1, True, "float32", "why", 8e12, "Warning: slow."))
    assert gpu.startswith("Warning: slow.\nT4, 1 GPU, float32 (why), 8,000 GFLOP/s measured: at least 36 minutes")
    busy = replace(AVX2, load=5.23)
    assert say(PLAN, busy) == f"{line} (load 5.2: other processes use the cores, and beside them it takes longer)"
    assert "about 20 hours; longest: a 20" in say([Stage("a", (), (), 72_000)], AVX2)


LINE = r"^.+, \d+ (core|GPU)s?, \w+ \(.+\), [\d,]+ GFLOP/s measured: (about|at least) [\d,]+ \w+; longest: (\S+ [\d,]+(, )?){3}( \(load .+\))?$"


def test_with_tiny_models_nothing_is_measured(monkeypatch):
    params = load_params("params/smoke.yaml")
    monkeypatch.setattr(forecast, "_measure", None)
    stages, line = foresee("params/smoke.yaml", params, list_stages(params), 2)
    assert stages == list_stages(params) and re.match(r"Tiny models: about \d+ minutes; longest: ", line)


def test_this_machine_is_measured():
    params = load_params("params/demo.yaml")
    stages, line = foresee("params/demo.yaml", params, list_stages(params), 2)
    assert re.match(LINE, line), line
    assert all(a.seconds >= b.seconds for a, b in zip(stages, list_stages(params), strict=True))


def test_the_measurement_has_the_environment_of_a_run(monkeypatch):
    seen = []

    def answer(command, env, **_):
        seen.append(env)
        return subprocess.CompletedProcess(command, 0, json.dumps(vars(AVX2)), "")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert forecast._measure("params/demo.yaml") == AVX2
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    forecast._measure("params/demo.yaml")
    assert [env["OMP_WAIT_POLICY"] for env in seen] == ["passive", "active"]
    assert "OMP_NUM_THREADS" not in seen[0] and seen[0]["PATH"] == os.environ["PATH"]


def test_what_is_not_known_stops_no_run(tmp_path, monkeypatch):
    params_file = write_params(tmp_path / "p.yaml", "demo", compute__device="cuda")
    params = load_params(params_file)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stages, line = foresee(params_file, params, list_stages(params))
    assert stages == list_stages(params) and re.match(r"How long it will take is not known: .*torch sees none", line)
    monkeypatch.setattr(forecast, "SIZES", {})
    demo = load_params("params/demo.yaml")
    stages, line = foresee("params/demo.yaml", demo, list_stages(demo))
    assert stages == list_stages(demo) and "the size of smollm2-135m-instruct is not known" in line and "SIZES" in line
