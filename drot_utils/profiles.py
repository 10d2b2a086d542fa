"""A profile: one YAML file of parameters, checked once when it is read."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from drot_utils.errors import ParamsError
from drot_utils.params import Params
from drot_utils.paths import resolve

#: Keys whose wrong value is not repeated: it may be a secret put in the wrong place.
SECRETIVE = ("base_url", "api_key_env")


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse a second key of the same name."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (name := (key.tag, str(key.value))) in seen:
                problem = f"the key `{key.value}` is given twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(name)
        return node


def read_yaml(path: Path) -> Any:
    """Read a YAML file; a key given twice, of which YAML would take the last without a word, is an error too.

    Raises
    ------
    YAMLError, UnicodeDecodeError, OSError
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


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
        Naming every key that is unknown, missing or of the wrong kind, with what was expected, or a key that is given twice.
    """
    path = resolve(path)
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        known = ", ".join(f"params/{p.name}" for p in sorted(resolve("params").glob("*.yaml")))
        raise ParamsError("no such parameter file", where=str(path), todo=f"use one of {known}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(
            error, "problem_mark", None
        )  # the whole message would repeat the line, and with it a secret
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        found = f"is no YAML text: {getattr(error, 'problem', None) or error}"
        raise ParamsError(found, where=where, todo="mend the file at the place named") from error
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
    return f"`{key}`: {problem['msg'].removeprefix('Value error, ')} (found {problem['input']!r}{_hint(problem)})"


def _hint(problem: dict[str, Any]) -> str:
    """Say how to write a number that YAML takes for text, such as ``1e-4``."""
    text = problem["input"]
    if problem["type"] not in ("float_type", "int_type") or not isinstance(text, str):
        return ""
    parts = re.fullmatch(r"([-+]?\d*)\.?(\d*)(?:[eE]([-+]?)(\d+))?", text)
    if not parts or not re.search(r"\d", text):
        return ""
    whole, decimals, sign, exponent = parts.groups()
    if problem["type"] == "int_type":
        text = f"{float(text):.0f}"
    elif exponent:
        text = f"{whole}.{decimals or 0}e{sign or '+'}{exponent}"
    return f", which YAML reads as text: write {text}"


def _key_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _key_names(field.annotation)
    return names
