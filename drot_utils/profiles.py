"""A profile: one YAML file of parameters, checked once when it is read."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from drot_utils.errors import ParamsError
from drot_utils.params import Params
from drot_utils.paths import resolve

#: Keys whose wrong value is not repeated: it may be a secret put in the wrong place.
SECRETIVE = ("base_url", "api_key_env")


def load_params(path: str | Path) -> Params:
    """Read and check a parameter file.

    Parameters
    ----------
    path : str or Path
        A YAML file; relative paths are relative to the checkout.

    Returns
    -------
    Params

    Raises
    ------
    ParamsError
        Naming every key that is unknown, missing or of the wrong kind, with what was expected.
    """
    path = resolve(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(f"params/{p.name}" for p in sorted(resolve("params").glob("*.yaml")))
        raise ParamsError("no such parameter file", where=str(path), todo=f"use one of {known}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(
            f"is no YAML text: {error}", where=str(path), todo="mend the file at the place named"
        ) from error
    if not isinstance(values, dict):
        raise ParamsError(f"expected keys and values, found {type(values).__name__}", where=str(path))
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ParamsError(
            problems, where=str(path), todo="params/demo.yaml shows every key with its meaning"
        ) from error


def _explain(problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "file"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _key_names(Params), n=1)
        return f"unknown key `{key}`" + (f" (did you mean `{close[0]}`?)" if close else "")
    if problem["type"] == "missing":
        return f"missing key `{key}`"
    if key.split(".")[-1] in SECRETIVE:
        return f"`{key}`: {problem['msg'].removeprefix('Value error, ')}"
    return f"`{key}`: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r})"


def _key_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _key_names(field.annotation)
    return names
