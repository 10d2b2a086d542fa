"""Tests of `plan`."""

import re

import pytest
from conftest import make_adapter, make_endpoint, write_params

from drot_utils.__main__ import main
from drot_utils.data import corpora
from drot_utils.method import teacher
from drot_utils.report import plan
from drot_utils.study import forecast
from drot_utils.study.errors import DrotError, ModelError
from drot_utils.study.graph import list_stages
from drot_utils.study.params import ModelRef, Parallel, load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study


@pytest.fixture(autouse=True, scope="module")
def counted():
    """What has been counted once is not counted again."""
    known, count = {}, plan.count_memory

    def remember(settings, parallel, dtype):
        key = settings.model_dump_json(), parallel.model_dump_json(), dtype
        if key not in known:
            known[key] = count(settings, parallel, dtype)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "count_memory", remember)
        yield


def test_the_papers_own_numbers_come_back():
    table = plan.plan_run(load_params("params/paper.yaml")).set_index("stage")
    counts = table["count"]
    assert counts["train Distill_base"] == pytest.approx(85_000)
    assert counts["train SelfDistill_1"] == pytest.approx(434_000)
    assert counts["train SelfDistill_2"] == pytest.approx(466_000)
    assert counts["train Distill_final"] == pytest.approx(578_000, rel=0.2)
    assert counts["write: data set"] == 94_000 * 20
    assert table.loc["train SelfDistill_1", "gpu_hours"] == pytest.approx(28 * 8)
    assert table.loc["all", "gpu_hours"] == pytest.approx(table["gpu_hours"].iloc[:-1].sum())


def test_every_committed_profile_can_be_planned(capsys, monkeypatch):
    monkeypatch.setattr(
        forecast, "foresee", lambda params_file, params, stages: (stages, f"{params.profile}: {len(stages)}")
    )
    for profile in ("smoke", "quick", "demo", "paper", "lora"):
        assert main(["plan", f"params/{profile}.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("smoke: 19\n") and "\nquick: 13\n" in out
    assert "Assumed" in out and "28 hours on 8 A6000" in out


def test_a_profile_with_recorded_answers_is_planned_in_minutes_of_this_machine(capsys, monkeypatch):
    machine = forecast.Machine("AVX2", 2, False, "float32", "no native bfloat16", 165e9)
    monkeypatch.setattr(forecast, "_measure", lambda params_file: machine)
    assert main(["plan", "params/demo.yaml"]) == 0
    line, table = capsys.readouterr().out.split("\n\n")[:2]
    assert re.search(r"\| train Distill_base, rows +\| +956 \|", table) and "gpu" not in table
    names = [stage.name for stage in list_stages(load_params("params/demo.yaml"))]
    assert [name for name in re.findall(r"^\| (\w\S+)", table, re.MULTILINE) if name in names] == names
    minutes = float(re.search(r"\| all .* ([\d.]+) \|$", table)[1])
    assert float(re.search(r"about (\d+) minutes", line)[1]) == pytest.approx(minutes, abs=1)
    assert main(["plan", "params/demo.yaml", "--tflops", "100"]) == 0
    out = capsys.readouterr().out
    assert (
        "gpu_hours" in out
        and "100.00 TFLOP/s a GPU, as given" in out
        and "kept as in the demo, 1.00 of the seeds" in out
    )
    monkeypatch.setattr(forecast, "SIZES", {})
    assert main(["plan", "params/demo.yaml"]) == 1


def test_unknown_size_says_where_to_add_it():
    params = load_params("params/demo.yaml")
    base = ModelRef(source="hub", name="someone/else", revision="a" * 40)
    params = params.model_copy(update={"student": params.student.model_copy(update={"base": base})})
    with pytest.raises(DrotError, match="add it to SIZES"):
        plan.plan_run(params)


def test_requests_are_planned_with_their_cost_and_the_budget(tmp_path, monkeypatch):
    changes = {"teacher__recorded": None, "teacher__endpoint__model": "gpt-4o-mini", "requests__budget_usd": 5.0}
    params = load_params(write_params(tmp_path / "p.yaml", "smoke", **changes))
    table = plan.plan_requests(params).set_index("notebook")
    seed = table.loc["01 seed generation"]
    assert (seed["requests"], seed["to_ask"], seed["choices"]) == (80, 80, 160)
    assert seed["completion_tokens"] == 160 * 128 and 80 * 60 < seed["prompt_tokens"] < 80 * 140
    expected = (0.15 * seed["prompt_tokens"] + 0.6 * seed["completion_tokens"]) / 1e6
    assert seed["cost_usd"] == pytest.approx(expected)
    text = plan.say_requests(params)
    assert "gpt-4o-mini" in text and "than $5.00" in text and "2026" in text
    assert not Run("smoke").root.exists()  # a plan writes nothing
    recorded = params.teacher.model_copy(update={"recorded": "data/demo/teacher_plain.tsv"})
    study = Study(params.model_copy(update={"teacher": recorded}), Run("smoke"), "test")
    teacher.fill_cache(study, corpora.read_actions(params.corpus.actions))
    assert plan.plan_requests(params)["to_ask"].tolist() == [0, 0]


def test_what_is_recorded_is_not_asked_for(tmp_path):
    params = load_params("params/demo.yaml")
    table = plan.plan_requests(params)
    assert table["requests"].tolist() == [480, 240] and not table[["to_ask", "choices", "cost_usd"]].any(axis=None)
    assert not table["minutes"].any() and "unknown" not in plan.say_requests(params)
    more = params.teacher.model_copy(update={"contexts_per_variance": 3})  # two are recorded
    assert plan.plan_requests(params.model_copy(update={"teacher": more}))["to_ask"].tolist() == [
        480,
        0,
    ]  # of test actions one is enough


def test_a_built_in_file_that_is_missing_fails_the_plan(tmp_path, capsys):
    path = write_params(tmp_path / "p.yaml", "smoke", toxicity__word_list="data/no.txt")
    assert main(["plan", str(path)]) == 1
    assert "data/no.txt: built-in data that is not there" in capsys.readouterr().err


def test_a_model_without_a_price_and_a_corpus_that_is_not_there():
    text = plan.say_requests(load_params("params/paper.yaml"))
    assert (
        "120,000" in text
        and "unknown" in text
        and "cost unknown" in text
        and "'Setting a fire' stands for its actions" in text
    )
    assert "Nobody is asked for what" in plan.say_requests(load_params("params/demo.yaml"))


def test_baselines_and_judges_at_endpoints_are_planned_too(tmp_path):
    endpoint = make_endpoint(model="gpt-4o-mini").model_dump()
    changes = {
        "evaluation__baselines": [{"name": "far", "endpoint": endpoint}],
        "judges__panel": [{"name": "judge", "endpoint": endpoint}],
        "judges__sample": 7,
    }
    params = load_params(write_params(tmp_path / "p.yaml", "smoke", **changes))
    table = plan.plan_requests(params)
    others = table[table["model"] == "gpt-4o-mini"].set_index("notebook")
    test = params.evaluation.baseline_actions or params.corpus.test_actions
    assert others.loc["07 evaluation", "requests"] == 2 * test and others.loc["12 judges", "requests"] == 7
    assert (others["cost_usd"] > 0).all() and others.loc["12 judges", "completion_tokens"] == 7 * 64


def test_models_that_are_known_to_refuse_settings_are_warned_of(tmp_path):
    endpoint = make_endpoint(model="gpt-5-mini")
    told = endpoint.model_copy(update={"names": {"temperature": None}})
    changes = {
        "teacher__recorded": None,
        "teacher__endpoint__model": "gpt-5",
        "teacher__presence_penalty": None,
        "evaluation__baselines": [{"name": "far", "endpoint": endpoint.model_dump()}],
        "judges__panel": [{"name": "judge", "endpoint": told.model_dump()}],
    }
    params = load_params(write_params(tmp_path / "p.yaml", "smoke", **changes))
    teachers, baselines = plan.warn_refused(params)
    assert "gpt-5 (teacher) is known to refuse top_p, frequency_penalty:" in teachers
    assert "gpt-5-mini (far) is known to refuse temperature:" in baselines
    assert teachers in plan.say_requests(params)
    assert plan.warn_refused(load_params("params/demo.yaml")) == []


ALONE = Parallel(processes=1, fsdp=False)


def with_student(name, profile="paper", parallel=ALONE, **changes):
    """The parameters of a profile on one GPU, or several, with another student."""
    params = load_params(f"params/{profile}.yaml")
    student = params.student.model_copy(update={"base": ModelRef(source="package", name=name), **changes})
    compute = params.compute.model_copy(update={"parallel": parallel})
    return params.model_copy(update={"student": student, "compute": compute})


SMALL = "smollm2-135m-instruct"


def test_a_student_of_3b_on_24_gib():
    table, found = plan.plan_memory(with_student("HuggingFaceTB/SmolLM3-3B"), 24)
    assert table["fits 24 GiB"].tolist() == ["no", "no", "no", "yes"]
    assert table["trained"].iloc[1] == "all weights, gradient checkpointing (this profile)"
    parts = table[["weights", "gradients", "moments", "activations"]].sum(axis=1)
    assert table["in all"].tolist() == pytest.approx((parts + plan.RESERVE).tolist())
    assert found.adapter == plan.ADAPTER and (found.batch_size, found.accumulate) == (8, 8)


def test_a_student_of_8b_on_24_gib_needs_smaller_batches_too():
    text = plan.say_memory(with_student("meta-llama/Llama-3.1-8B-Instruct"), 24)
    assert "training of meta-llama/Llama-3.1-8B-Instruct does not fit on 24 GiB. It does with" in text
    assert "`student.adapter: {kind: lora, rank: 32, alpha: 64.0, dropout: 0.0, target: all-linear}`" in text
    assert "`student.batch_size: 4`, `student.accumulate: 16`" in text


def test_the_profile_with_an_adapter_fits_and_needs_fewer_operations(capsys):
    assert main(["plan", "params/lora.yaml", "--gpu-gib", "24"]) == 0
    out = capsys.readouterr().out
    assert "The training of google/flan-t5-xl by this profile fits on 24 GiB." in out
    assert "adapter of rank 32, gradient checkpointing (this profile)" in out
    paper, adapter = (
        plan.plan_run(load_params(f"params/{name}.yaml")).set_index("stage") for name in ("paper", "lora")
    )
    hours = [table.loc["train Distill_base", "gpu_hours"] for table in (paper, adapter)]
    assert hours[1] == pytest.approx(hours[0] * 4 / 6)


def test_the_first_settings_that_fit_are_found():
    params = with_student(SMALL, "demo")
    own, batch = params.student, params.student.batch_size
    table, found = plan.plan_memory(params, 24)
    assert found == own and "fits on 24 GiB" in plan.say_memory(params, 24)
    weights, again, _, adapter = table["in all"]
    assert plan.plan_memory(params, weights - 0.01)[1] == own.model_copy(update={"gradient_checkpointing": True})
    half = {"gradient_checkpointing": True, "batch_size": batch // 2, "accumulate": 2}
    assert plan.plan_memory(params, again - 0.01)[1] == own.model_copy(update=half)
    least = adapter - table["activations"].iloc[-1] * (1 - 1 / batch)
    found = plan.plan_memory(params, least + 0.01)[1]
    assert (found.adapter, found.batch_size) == (plan.ADAPTER, 1)
    table, found = plan.plan_memory(params, least - 0.01)
    assert found.adapter.rank == plan.LOW_RANK == 8 and "rank 8" in table["trained"].iloc[-1]
    assert "nor do other settings make it fit" in plan.say_memory(params, 1.1)


def test_all_weights_are_not_planned_for_where_the_profile_has_an_adapter():
    params = with_student(SMALL, "demo", adapter=make_adapter(), gradient_checkpointing=True)
    table, found = plan.plan_memory(params, 24)
    assert (
        found == params.student
        and table["trained"].iloc[-1] == "adapter of rank 4, gradient checkpointing (this profile)"
    )


def test_a_share_of_the_weights_is_planned_for_under_fsdp():
    params = with_student(SMALL, "demo", Parallel(processes=8, fsdp=True))
    text = plan.say_memory(params, 1.1)
    assert "| all weights, shared by 8 GPUs (this profile) " in text and "| adapter of rank 32  " in text


def test_an_adapter_that_a_student_cannot_take_is_found_by_the_plan():
    params = with_student(SMALL, "demo", adapter=make_adapter(target=["query"]))
    with pytest.raises(ModelError, match="no linear layer 'query'"):
        plan.plan_memory(params, 24)
