"""Reading a score from 0 to 1 in what a model says, without guessing."""

import json
import re

from drot_utils.markup import unwrap

KEYS = ("score", "probability", "acceptability", "answer", "rating", "value")

_NUMBER = r"(?<![\w.])(?<!\d,)[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w|[.,]\d)"
_RATIO = re.compile(rf"({_NUMBER})\s*(?:/|out of)\s*({_NUMBER})", re.IGNORECASE)
_PERCENT = re.compile(rf"({_NUMBER})\s*(?:%|per ?cent\b)", re.IGNORECASE)
_SCALE = re.compile(
    r"\b(?:scale|range|between|from)\D{0,20}0(?:\.0)?\s*(?:-|–|to|and)\s*1(?:\.0)?(?![\d.]*\d)", re.IGNORECASE
)
_LABELLED = re.compile(
    rf"\b(?:{'|'.join(KEYS)})\b[\s*_\"'`]*(?:[:=]|\bis\b|\bof\b|\bwould be\b)[\s*_\"'`]*"
    rf"({_NUMBER}(?:\s*(?:%|per ?cent\b|(?:/|out of)\s*{_NUMBER}))?)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```(?:[a-z]+\b)?(.*?)```", re.DOTALL | re.IGNORECASE)
_OBJECT = re.compile(r"\{[^{}]*\}")


def parse_score(text: str) -> float | None:
    """Read a score from 0 to 1 in a model's own words.

    Understood are the JSON asked for (also in a markdown fence or within prose, its number also as text), a number after the
    word score (probability, answer ...), and a number alone or in prose if it is the only one; each also as a per cent or a
    ratio ("8/10"). Thoughts are not read (`markup.unwrap`). Nothing is guessed: a number outside the scale, several
    different ones, or words only ("probably") are no score.

    Returns
    -------
    float or None
        None when there is no score; the caller counts it and keeps the text.
    """
    text = (unwrap(text) or "").strip()
    fenced = _FENCE.findall(text)
    for candidate in [*fenced, text, *_OBJECT.findall(text)]:
        entry = _entry(candidate)
        if entry is not None:
            return _only(_numbers(entry))
    labelled = set().union(*(_numbers(match[1]) for match in _LABELLED.finditer(text)))
    return _only(labelled or _numbers(text))


def _entry(text: str) -> str | None:
    """Return the value of a JSON object's score, as text; None when it is no such object."""
    try:
        value = json.loads(text.strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    lower = {str(key).lower(): entry for key, entry in value.items()}
    return next((str(lower[key]) for key in KEYS if key in lower), None)


def _only(numbers: set[float]) -> float | None:
    return next(iter(numbers)) if len(numbers) == 1 and 0 <= min(numbers) <= 1 else None


def _numbers(text: str) -> set[float]:
    """Return the different numbers of a text: of a per cent its share of 1, of a ratio the quotient, of a scale none."""
    found: set[float] = set()
    text = _SCALE.sub(" ", text)
    for match in _RATIO.finditer(text):
        whole = float(match[2])
        found.add(float(match[1]) / whole if whole else float("inf"))
    text = _RATIO.sub(" ", text)
    found |= {float(number) / 100 for number in _PERCENT.findall(text)}
    return found | {float(number) for number in re.findall(_NUMBER, _PERCENT.sub(" ", text))}
