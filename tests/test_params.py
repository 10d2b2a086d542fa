import pytest
from conftest import write_params
from pydantic import ValidationError

from drot_utils.errors import ParamsError
from drot_utils.params import Params
from drot_utils.profiles import load_params
from drot_utils.settings import Executor, ModelRef, Threshold


def test_values_do_not_change(smoke):
    with pytest.raises(ValueError, match="frozen"):
        smoke.seed = 1


def test_a_threshold_is_one_number_or_one_rule():
    assert Threshold(value=0.8).value == 0.8 and Threshold(precision=0.7).precision == 0.7
    for wrong in ({}, {"value": 0.5, "precision": 0.5}, {"value": 2.0}):
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
    sections = [
        field.annotation
        for field in Params.model_fields.values()
        if hasattr(field.annotation, "model_config")
    ]
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
