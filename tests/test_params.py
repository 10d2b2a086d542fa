"""Tests of `params`."""

import re

import pytest
import yaml
from conftest import make_endpoint, write_params
from pydantic import ValidationError

from drot_utils.study.errors import ParamsError
from drot_utils.study.params import Executor, ModelRef, Params, Respondent, Threshold, load_params, read_overrides

LOCAL = ModelRef(source="package", name="smollm2-135m-instruct")


def test_a_hub_model_without_a_commit_is_refused():
    with pytest.raises(ValidationError, match="pinned"):
        ModelRef(source="hub", name="google/flan-t5-xl", revision="main")


def test_a_respondent_answers_in_exactly_one_way():
    assert Respondent(name="local", model=LOCAL).model == LOCAL
    with pytest.raises(ValidationError, match="exactly one"):
        Respondent(name="nobody")
    with pytest.raises(ValidationError, match="exactly one"):
        Respondent(name="both", model=LOCAL, recorded="data/demo/teacher_rich.tsv")


def test_a_respondents_name_can_be_a_files():
    with pytest.raises(ValidationError):
        Respondent(name="../elsewhere", model=LOCAL)


def test_an_endpoint_is_an_address_without_secrets_and_names_a_variable():
    assert make_endpoint("https://api.openai.com/v1", api_key_env="OPENAI_API_KEY").model == "m"
    for wrong in (
        {"url": "ftp://host/v1"},
        {"url": "host"},
        {"url": "http://u:p@host/v1"},
        {"api_key_env": "sk-1"},
        {"concurrency": 5000},
    ):
        with pytest.raises(ValidationError):
            make_endpoint(**wrong)


def test_values_do_not_change(smoke):
    with pytest.raises(ValueError, match="frozen"):
        smoke.seed = 1


def test_a_threshold_is_one_number_or_one_rule():
    assert Threshold(value=0.8).value == 0.8 and Threshold(precision=0.7).precision == 0.7
    for wrong in ({}, {"value": 0.5, "precision": 0.5}, {"value": 2.0}, {"share": 0.0}, {"share": 0.5, "recall": 0.5}):
        with pytest.raises(ValidationError):
            Threshold(**wrong)


def test_only_hub_models_have_a_revision_and_they_must():
    assert ModelRef(source="hub", name="gpt2", revision="a" * 40).revision
    for wrong in (
        {"source": "hub", "name": "gpt2", "revision": "main"},
        {"source": "folder", "name": "x", "revision": "a" * 40},
    ):
        with pytest.raises(ValidationError):
            ModelRef(**wrong)


def test_no_workers_is_no_executor():
    with pytest.raises(ValidationError):
        Executor(kind="processes", workers=0, address=None)


@pytest.mark.parametrize(
    "key", ["generation__shard_size", "generation__batch_size", "compute__shard_rows", "student__batch_size"]
)
def test_a_size_of_zero_is_refused_by_name(tmp_path, key):
    with pytest.raises(ParamsError, match=f"`{key.replace('__', '.')}`.*greater than 0"):
        load_params(write_params(tmp_path / "p.yaml", "smoke", **{key: 0}))


def test_every_section_is_strict():
    sections = [field.annotation for field in Params.model_fields.values() if hasattr(field.annotation, "model_config")]
    assert len(sections) >= 12
    for section in sections:
        assert (
            section.model_config["extra"] == "forbid"
            and section.model_config["strict"]
            and section.model_config["frozen"]
        )


def test_sampling_settings_may_be_null_and_an_endpoint_may_call_them_otherwise(tmp_path):
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens")
    changes = {f"teacher__{name}": None for name in names}
    teacher = load_params(write_params(tmp_path / "p.yaml", "smoke", **changes)).teacher
    assert all(getattr(teacher, name) is None for name in names) and teacher.endpoint.names == {}
    with pytest.raises(ParamsError, match=r"teacher.endpoint.names.top_q"):
        load_params(write_params(tmp_path / "p.yaml", "smoke", teacher__endpoint__names={"top_q": None}))


TWICE = {"name": "x", "recorded": "scores.tsv"}


def keys_of(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix}
    return set().union(*(keys_of(v, f"{prefix}.{k}") for k, v in value.items()))


@pytest.mark.parametrize("profile", ["smoke", "quick", "demo", "paper"])
def test_committed_profiles_are_valid(profile):
    assert load_params(f"params/{profile}.yaml").profile == profile


def test_the_two_whole_profiles_have_the_same_keys():
    from drot_utils.study.paths import ROOT

    values = [yaml.safe_load((ROOT / f"params/{p}.yaml").read_text()) for p in ("demo", "paper")]
    models_and_rules = ("base", "embedder", "model", "threshold_seed", "threshold_distill", "threshold_dataset")

    def plain(value):
        return (
            {k: None if k in models_and_rules else plain(v) for k, v in value.items()}
            if isinstance(value, dict)
            else None
        )

    assert plain(values[0]) == plain(values[1])


def test_paper_profile_holds_the_papers_numbers():
    params = load_params("params/paper.yaml")
    assert params.corpus.seed_actions == 60_000 and params.corpus.test_actions == 6_000
    assert params.critic.threshold_seed.value == params.critic.threshold_distill.value == 0.8
    assert params.critic.threshold_dataset.value == 0.96 and params.critic.threshold_rows is None
    assert params.critic.mismatched == 0
    assert [key for key, value in params.distill.model_dump().items() if value] == ["teacher_taught"]
    assert (params.critic.learning_rate, params.critic.batch_size, params.critic.max_steps) == (5e-6, 4, 15_000)
    assert params.student.learning_rate == 5e-5 and params.student.epochs == 3
    assert params.student.batch_size * params.student.accumulate == 64
    assert params.generation.candidates == 10 and params.generation.top_p == 0.9 and params.nli.threshold == 0.5
    assert params.teacher.presence_penalty == params.teacher.frequency_penalty == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation__top_pp": 0.9}, r"unknown key `generation.top_pp` \(did you mean `top_p`\?\)"),
        ({"generation__top_p": "0.9"}, "generation.top_p"),
        ({"generation__top_p": 1.5}, "less than or equal to 1"),
        ({"generation__batch_size": 0}, "greater than 0"),
        ({"generation__shard_size": 0}, "greater than 0"),
        ({"seed": True}, "seed"),
        ({"critic__splits": [0.5, 0.5, 0.5]}, "must sum to 1"),
        ({"critic__head": "binary"}, "teacher_rows"),
        (
            {"critic__head": "binary", "critic__teacher_rows": None, "critic__frozen_layers": 1},
            "`frozen_layers` freezes",
        ),
        ({"nli__frozen_layers": -1}, r"`nli\.frozen_layers`.*greater than or equal to 0"),
        ({"critic__threshold_distill": {"value": 0.5, "recall": 0.5}}, "exactly one of"),
        ({"critic__threshold_seed": {"share": 0.0}}, "greater than 0"),
        ({"distill__max_per_prompt": 0}, "greater than 0"),
        ({"student__base": {"source": "hub", "name": "gpt2"}}, "pinned"),
        ({"student__base": {"source": "random", "name": "x", "revision": "a" * 40}}, "hub"),
        ({"toxicity__scorer": "recorded"}, "needs a value of `recorded`"),
        ({"toxicity__scorer": "model"}, "needs a value of `model`"),
        ({"bias__action": "No country here"}, r"`bias\.action`.*country"),
        ({"corpus__round_actions": []}, "round_actions"),
        ({"critic__independent_share": 0.0, "evaluation__critic": "independent"}, "above 0"),
        ({"profile": "../escape"}, "profile"),
        ({"profile": "demo-play"}, "notebooks by hand"),
        ({"judges__filter": "judges", "judges__panel": []}, r"at least one judge in `judges\.panel`"),
        ({"evaluation__critic": "judges", "judges__panel": []}, r"at least one judge in `judges\.panel`"),
        ({"judges__panel": [TWICE, TWICE]}, "judges.panel.*'x' is given twice"),
        ({"evaluation__baselines": [TWICE, TWICE]}, "evaluation.baselines.*'x' is given twice"),
        ({"evaluation__baselines": [{**TWICE, "name": "distill_final"}]}, "name of a model of the study"),
        ({"evaluation__baselines": [{"name": "x"}]}, "exactly one of `endpoint`, `model`, `recorded`"),
        ({"judges__panel": [{**TWICE, "model": {"source": "random", "name": "tiny-llama"}}]}, "exactly one of"),
        ({"judges__aggregate": "median"}, "judges.aggregate"),
        (
            {"teacher__endpoint__base_url": "localhost:8000"},
            r"`teacher.endpoint.base_url`: must be the http\(s\) address",
        ),
        ({"teacher__endpoint__transport": "post"}, "'direct' or 'batch'"),
        ({"teacher__endpoint__concurrency": 0}, "greater than 0"),
        ({"requests__cache": "always"}, "requests.cache"),
        ({"requests__budget_usd": 0.0}, "greater than 0"),
        ({"annotation__gold_rows": {"round": 3, "uncertain": 1, "repeated": 1, "random": 1}}, "there are 2 rounds"),
    ],
)
def test_bad_values_are_named_with_file_and_rule(tmp_path, changes, message):
    path = write_params(tmp_path / "p.yaml", "demo", **changes)
    with pytest.raises(ParamsError, match=message) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_url", "https://user:sk-secret@host/v1"),
        ("base_url", "https://host/v1?key=sk-secret"),
        ("api_key_env", "sk-secret"),
        ("api_key_env", "gsk_secret7F3"),
        ("api_key_env", "sk_live_secret"),
        ("api_key_env", "HF_secret"),
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(tmp_path, key, value):
    path = write_params(tmp_path / "p.yaml", "demo", **{f"teacher__endpoint__{key}": value})
    for arguments in ((path,), ("params/demo.yaml", {f"teacher.endpoint.{key}": value})):
        with pytest.raises(ParamsError, match=key) as caught:
            load_params(*arguments)
        assert value not in str(caught.value) and "sk-secret" not in str(caught.value)


def test_missing_key_missing_file_and_broken_yaml(tmp_path):
    with pytest.raises(ParamsError, match="no such parameter file"):
        load_params("params/nope.yaml")
    (tmp_path / "a.yaml").write_text("profile: demo\n")
    with pytest.raises(ParamsError, match="missing key `corpus`"):
        load_params(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load_params(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(ParamsError, match="expected keys and values"):
        load_params(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2.5e5", r"`critic.learning_rate`: .* less than 1 \(found 250000\.0\)"),
        ("'0.1'", r"valid number \(found '0\.1'\)"),
        ("fast", r"valid number \(found 'fast'\)"),
    ],
)
def test_a_number_may_be_written_as_everywhere_but_is_not_read_from_text(tmp_path, value, message):
    text = write_params(tmp_path / "p.yaml", "demo", critic__learning_rate="HERE").read_text()
    (tmp_path / "p.yaml").write_text(text.replace("HERE", "1e-4"))
    assert load_params(tmp_path / "p.yaml").critic.learning_rate == 0.0001
    (tmp_path / "p.yaml").write_text(text.replace("HERE", value))
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\nprofile: a\nseed: 1\n", 3, "seed"),
        ("critic:\n  base: x\n  base: y\n", 3, "base"),
        ("a:\n- {name: x, name: y}\n", 2, "name"),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path, text, line, key):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ParamsError, match=rf"p.yaml, line {line}: .* the key `{key}` is given twice"):
        load_params(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("api_key_env: sk-secret\napi_key_env: sk-secret\n")
    with pytest.raises(ParamsError, match="twice") as caught:
        load_params(tmp_path / "p.yaml")
    assert "sk-secret" not in str(caught.value)


def extend(folder, name, text):
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_extend_another_section_by_section(tmp_path):
    write_params(tmp_path / "base.yaml", "smoke")
    extend(tmp_path, "mine", "extends: base.yaml\nprofile: mine\nnli: {threshold: 0.4}\n")
    last = extend(
        tmp_path, "last", "extends: mine.yaml\nnli: {epochs: 9}\ncritic: {threshold_distill: {precision: 0.7}}\n"
    )
    base, params = load_params(tmp_path / "base.yaml"), load_params(last)
    assert (params.profile, params.nli.threshold, params.nli.epochs) == ("mine", 0.4, 9)
    assert params.critic.threshold_distill == Threshold(precision=0.7)  # the whole value of a key, not a mixture
    assert params.nli.base == base.nli.base and params.student == base.student


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nothing.yaml\n", r"no such parameter file, which .*mine.yaml extends"),
        ("extends: mine.yaml\n", "mine.yaml extends mine.yaml: a circle"),
        ("extends: [a.yaml, b.yaml]\n", "expected the name of a file"),
        ("extends: base.yaml\nnli: 3\n", "`nli`"),
        ("extends: base.yaml\nnli: {treshold: 0.4}\n", r"unknown key `nli.treshold` \(did you mean `threshold`"),
    ],
)
def test_what_a_file_may_not_extend(tmp_path, text, message):
    write_params(tmp_path / "base.yaml", "smoke")
    with pytest.raises(ParamsError, match=message):
        load_params(extend(tmp_path, "mine", text))


def test_files_that_extend_each_other_in_a_circle(tmp_path):
    extend(tmp_path, "a", "extends: b.yaml\n")
    with pytest.raises(ParamsError, match=r"b.yaml extends a.yaml extends b.yaml: a circle"):
        load_params(extend(tmp_path, "b", "extends: a.yaml\n"))


def test_overrides_reach_every_key(smoke):
    changes = {"nli.threshold": 0.4, "student.base.name": "tiny-t5", "corpus.round_actions": [5, 4, 3], "seed": 7}
    params = load_params("params/smoke.yaml", changes)
    assert (params.nli.threshold, params.student.base.name, params.seed) == (0.4, "tiny-t5", 7)
    assert params.corpus.round_actions == [5, 4, 3] and params.critic == smoke.critic
    whole = load_params("params/smoke.yaml", {"critic.threshold_dataset": {"recall": 0.5}})
    assert whole.critic.threshold_dataset == Threshold(recall=0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nli.treshold", 0.4, r"unknown key `nli.treshold` \(did you mean `threshold`"),
        ("nlii.threshold", 0.4, "unknown key `nlii.threshold`"),
        ("nli.threshold.x", 0.4, "unknown key `nli.threshold.x`"),
        ("nli.threshold", "high", r"`nli.threshold`: Input should be a valid number \(found 'high'\)"),
        ("nli.threshold", 2, "less than 1"),
        ("nli", {"threshold": 0.4}, r"`nli` is a whole section.*such as `nli\.base`"),
        ("corpus.round_actions", [], "at least 1 item"),
        ("threshold", 0.4, "unknown key `threshold`"),
    ],
)
def test_an_override_that_is_refused(key, value, message):
    with pytest.raises(ParamsError, match=re.compile(message, re.DOTALL)):
        load_params("params/smoke.yaml", {key: value})


def test_overrides_on_the_command_line_are_yaml():
    texts = [
        "nli.threshold=0.4",
        "critic.learning_rate=1e-4",
        "corpus.final_actions=null",
        "corpus.round_actions=[3, 4]",
    ]
    assert read_overrides([*texts, "bias.action=Lying = bad in {country}"]) == {
        "nli.threshold": 0.4, "critic.learning_rate": 1e-4, "corpus.final_actions": None, "corpus.round_actions": [3, 4],
        "bias.action": "Lying = bad in {country}",
    }  # fmt: skip
    for wrong in ("nli.threshold", "=3", "nli.threshold=[3"):
        with pytest.raises(ParamsError, match="expected key=value"):
            read_overrides([wrong])
