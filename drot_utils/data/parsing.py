"""How a model's answer is read: the prompt's labels in all the forms in which models write them, and what wraps them.

Every pattern is anchored, bounded or possessive: reading takes time in proportion to the answer's length.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: Lines of a kind: the beginning of a list item, a heading, and what holds no words (blank lines, code fences, rules).
ITEM = re.compile(r"[\s>]*+(?:[-+*•▪◦–—]|\(?(?:\d{1,3}[.)]|[A-Ca-c]\)))(?:\s+|$)")
HEADING = re.compile(r"[\s>]*+#{1,6}\s")
BLANK = re.compile(r"[\s>]*+(?:(?:```|~~~)\w*+|[-*_=\s]*+)\s*+$")
#: What may stand before a label, as a regular expression: signs of quotation, lists, headings and emphasis.
SIGNS = r"[\s>#*+•▪◦–—_`\"“”'‘’\[({|-]*+"
#: Characters without width, to be left out with `str.translate`.
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))

_EMPHASIS = [re.compile(rf"(?<![\w{s}])[{s}]{{1,3}}(?=[^\s{s}])([^{s}]+)(?<=\S)[{s}]{{1,3}}(?![\w{s}])") for s in "*_`"]
_MARKS = re.compile(r"^(?:(?:[-+*•▪◦–—>]|#{1,6}|\(?(?:\d{1,3}[.)]|[A-Ca-c]\)))\s+)+")
_JSON_REST = re.compile(r'"\s*,\s*"?$')  # between two values of JSON that does not end
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»"}
#: Words for nothing, in small letters: those of models, and those that programs write into empty cells.
NOTHING = {"n/a", "none", "null", "not applicable", "nan", "<na>"}

#: Where a model's notes to itself begin and end, as tags or special tokens.
_THOUGHT = re.compile(
    r"[<◁]/?(?i:(?:\w{1,12}:)?(?:think(?:ing)?|thoughts?))[>▷]|\[/?THINK\]|<\|(?P<token>begin|end)_of_thought\|>"
)
#: gpt-oss speaks in channels; where its answer begins. Decoded without special tokens, only the words are left.
_CHANNEL = re.compile(r"\A\s*+analysis(?=[A-Z\"'])|<\|channel\|>")
_FINAL = re.compile(r"<\|channel\|>\s?final\b[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>|assistantfinal")
#: Special tokens of chat templates: those before the first word open an answer, any other one ends it.
_MARK = r"<[|｜](?!begin_of_thought)[\w▁]{1,40}[|｜]>|</?s>|<(?:start_of_turn|end_of_turn|bos|eos|pad|eot)>|\[/?INST\]"
_OPENING = re.compile(rf"(?:\s*+(?:{_MARK})(?:(?:assistant|model)(?=[ \t]*+[\n<]))?)*+")
_END = re.compile(_MARK)


def unwrap(text: str) -> str | None:
    """Return what follows a model's last thought, without special tokens; None when a thought was begun and not ended."""
    if _CHANNEL.search(text):
        finals = list(_FINAL.finditer(text))
        if not finals:
            return None
        text = text[finals[-1].end() :]
    closing = [mark.end() for mark in _THOUGHT.finditer(text) if "/" in mark[0] or mark["token"] == "end"]
    text = text[closing[-1] :] if closing else text
    text = text[_OPENING.match(text).end() :]
    text = _END.split(text, maxsplit=1)[0]
    return None if _THOUGHT.search(text) else text


def clean(text: str) -> str:
    """Return a text as one line without emphasis, list signs, quotation marks around all of it, and final full stop.

    What is clean stays as it is; when no letter or digit is left, or only a word for nothing ("N/A"), it is "".
    """
    text = " ".join(text.split())
    before = None
    while text != before:  # what is quoted may end with a full stop, what is bold may be quoted ...
        before = text
        for pattern in _EMPHASIS:
            text = pattern.sub(r"\1", text)
        text = _unquote(_strip(_JSON_REST.sub('"', _MARKS.sub("", text))))
    return "" if text.casefold() in NOTHING or not any(map(str.isalnum, text)) else text


def _strip(text: str) -> str:
    signs = " *_`|{}" + "“" * ("”" not in text) + "”" * ("“" not in text)
    text = text.lstrip(signs)
    stem = text.rstrip(f"{signs}.")
    return f"{stem}..." if text.count(".", len(stem)) > 1 else stem


def _unquote(text: str) -> str:
    if text.count('"') % 2:
        return text.removeprefix('"') if text.startswith('"') else text.removesuffix('"')
    inner, closing = text[1:-1], _QUOTES.get(text[:1])
    quoted = inner and text.endswith(closing or "\n") and not {text[0], closing} & set(inner)
    return inner if quoted else text


LONGEST = 2000  # characters of a context or a rationale; the paper's contexts have 12 words on average
RENEWALS = 3  # a value of JSON may hold labels in turn: a pair is read again until nothing changes

_KINDS = {
    "situation": "situations?|scenarios?|contexts?|circumstances?",
    "explanation": "explanations?|reasons?|reasoning|rationale|justification|because|why",
    "action": "action",
}
_NAMES = "|".join(_KINDS.values())
_NUMBER = r"(?:\s?[#(\[]?(?P<number>\d{1,2}|[A-C])\b[)\].]?)?"
_CLAUSE = r"(?:\s?\([^()]{1,60}\))?(?:\s(?:in which|where|why|for|that|behind)\b[^:：*]{1,80}(?=[:：*]))?"
_COLON = r"[*_`\"”'’\])]*+\s*+[:：][*_`\"”'’]*+"
#: What stands before a label: signs, with or without a number.
_PREFIX = re.compile(rf"{SIGNS}(?:(?:\d{{1,3}}|[A-Ca-c])[.):]{SIGNS})*+")
#: A label that begins a line: with a colon, with a dash after a blank, or with nothing after it.
_LABEL = re.compile(
    r"(?:(?:here(?:['’]s| is| are)|the|my|an?|one|possible|example|first|modified|more|less|(?:un)?ethical)\s){0,4}"
    rf"(?P<name>{_NAMES})\b{_NUMBER}{_CLAUSE}(?:{_COLON}|[*_`]*+\s++[-–—](?=\s)|[*_`\"”'’]*+(?P<bare>\s*+)$)",
    re.IGNORECASE,
)
#: A label within a line: what cannot be a word of the sentence, as it has a capital, signs, or a stop before it.
_INNER_LABEL = re.compile(
    r"(?:(?<=[\"“'‘*_|])|(?<=[.!?;|]\s)"
    r"|(?<!\w)(?=(?:Explanation|EXPLANATION|Reason(?:ing)?|Rationale|Justification"
    r"|Situation|SITUATION|Scenario|Context|Action)\b))"
    rf"(?P<name>(?i:{_NAMES}))\b{_NUMBER}{_COLON}"
)
#: What begins an explanation without a label.
_UNLABELLED = re.compile(r"[\s>*_-]*+(?:because|(?:this|that) (?:is because|makes|would make))\b", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|ok|great|understood)?\W*+here(?:['’]s| is| are)\b|given an action,",
    re.IGNORECASE,
)
_CANNOT = r"i(?:['’]m| am)?(?: can['’]t| can ?not| won['’]t| will not| unable to| not able to| not comfortable)"
_DECLINED = (
    r"(?:help(?: you)? with (?:this|that|your|such|creat|writ|generat)|help(?: you)?\W*$|assist|comply|fulfill?\b|condone|endorse|generat"
    r"|do (?:this|that)\W*$|(?:writ|creat|provid|giv|offer|suggest|com)\w*\b.{0,40}?\b(?:situation|scenario|context|content|example"
    r"|reason|justification|advice|instruction))"
)
_REFUSAL = re.compile(
    rf"i(?:['’]m| am) (?:very |so )?sorry,? but\b.{{0,40}}?(?:{_CANNOT}|\bai\b)"
    r"|(?:i['’]m|i am|as) an? (?:ai|(?:large )?language model)\b"
    rf"|(?:(?:sorry|(?:my )?apologies|i apologi[sz]e|unfortunately|no)\b.{{0,20}}?\b)?{_CANNOT} {_DECLINED}",
    re.IGNORECASE,
)
#: No English sentence ends with these.
_DANGLING = re.compile(r"(?:[,(–—-]|\s(?:the|an?|and|or|but|nor|because|if|than|its|their|my|your|our))$")
_WHOLE = re.compile(r".*[.!?](?=\s)")
#: Where JSON begins: with a line, or with an object's first key.
_JSON = re.compile(r"^[ \t>]*+(?=[{\[])|(?=\{\s*+[\"'])", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """A context with its rationale, as read from a model's text."""

    context: str
    rationale: str


@dataclass
class _Part:
    """What stands under one label: its first paragraph or list item."""

    kind: str
    number: str | None = None
    opening: bool = False  # stands under no label of its own: the answer continues the prompt
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def text(self) -> str:
        """The lines as one; an opening that ends with a colon announces something and is none."""
        text = " ".join(self.lines)
        return "" if self.opening and text.endswith((":", "：")) else text

    def add(self, line: str) -> None:
        """Take a further line in, unless the first paragraph or item is over."""
        heading = bool(HEADING.match(line))
        if self.lines and (heading or BLANK.match(line) or ITEM.match(line)):
            self.closed = True
            if self.opening and (not self.text or _PREAMBLE.match(self.text)):
                self.lines, self.closed = [], False
        if not (self.closed or BLANK.match(line) or (heading and self.opening)):
            self.lines.append(line.strip())


def parse_teacher(text: str) -> Parsed | None:
    """Read the continuation of appendix A's prompt; None when there is no situation with an explanation (see `diagnose`).

    The labels may be in markdown, numbered, on lines of their own, called otherwise (Context, Scenario; Reason,
    Rationale, Because ...), repeated from the prompt, or keys of JSON; the first one may be missing, and so may the
    second before "Because" or "This makes". Of several situations the first pair is taken; of a text under a label its
    first paragraph or list item. What follows a further ``Action:`` is not read, nor are thoughts (`unwrap`). Of an
    explanation whose last word cannot end a sentence the whole sentences are kept; without any, it was cut off.
    """
    return _read(text)[0]


def diagnose(text: str) -> str:
    """Say how `parse_teacher` fares: parsed, empty, refusal, cut off, too long, no situation, or no explanation."""
    return _read(text)[1]


def _read(text: str) -> tuple[Parsed | None, str]:
    before = None
    for _ in range(1 + RENEWALS):
        verdict = _read_once(text)
        if verdict[0] is None or verdict == before:
            return verdict
        before, text = verdict, f" {verdict[0].context}\nExplanation: {verdict[0].rationale}"
    return None, "no explanation"


def _read_once(text: str) -> tuple[Parsed | None, str]:
    text = unwrap(text.translate(INVISIBLE))
    if text is None:
        return None, "cut off"
    if not text.strip():
        return None, "empty"
    values, text = _read_json(text)
    for parts in (values, _label_parts(text, False), _label_parts(text, True)):
        verdict = _first_pair(parts)
        if verdict[1] not in ("no situation", "no explanation"):
            return verdict
    return (None, "refusal") if _REFUSAL.match(text[:LONGEST].strip()) else verdict


def _first_pair(parts: Iterable[_Part]) -> tuple[Parsed | None, str]:
    situations: dict[str | None, str] = {}
    latest, moved_on = "", False
    for part in parts:
        if len(part.text) > LONGEST:
            return None, "too long"
        text = clean(part.text)
        if part.kind == "action":
            moved_on = bool(latest)
        elif part.kind == "situation" and text:
            if moved_on:
                break
            latest = situations[part.number] = text
        elif part.kind == "explanation" and text and latest:
            return _check(situations.get(part.number, latest) if part.number else latest, text)
    return None, "no explanation" if latest else "no situation"


def _check(context: str, rationale: str) -> tuple[Parsed | None, str]:
    if _REFUSAL.match(context):
        return None, "refusal"
    while _DANGLING.search(rationale):
        whole = _WHOLE.match(rationale)
        rationale = clean(whole[0]) if whole else ""
    return (Parsed(context, rationale), "parsed") if rationale else (None, "cut off")


def _label_parts(text: str, unlabelled: bool) -> Iterator[_Part]:
    """Cut a text at its labels, and with `unlabelled` also where an explanation begins without one."""
    part = _Part("situation", opening=True)
    for line in text.splitlines():
        begin, labels = 0, list(_find_labels(line))
        if unlabelled and not labels and part.kind == "situation" and part.lines and _UNLABELLED.match(line):
            yield part
            part = _Part("explanation")
        for start, label in labels:
            if line[begin:start].strip():
                part.add(line[begin:start])
            yield part
            part, begin = _Part(_kind(label), label["number"]), label.end()
        part.add(line[begin:])
        if part.kind == "action":  # one line long
            yield part
            part = _Part("situation", opening=True)
    yield part


def _find_labels(line: str) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield each label of a line, and where the signs before it start."""
    position = 0
    while True:
        signs = _PREFIX.match(line, position).end()
        label = _LABEL.match(line, signs)
        # A label with nothing after it has a line of its own, and is not a word of a wrapped sentence.
        bare = label and label["bare"] is not None
        if not label or (bare and (position or not (label[0][0].isupper() or line[:signs].strip()))):
            break
        yield position, label
        position = label.end()
    for label in _INNER_LABEL.finditer(line, position):
        yield label.start(), label


def _kind(label: re.Match[str]) -> str:
    return next(kind for kind, names in _KINDS.items() if re.fullmatch(names, label["name"], re.IGNORECASE))


def _read_json(text: str) -> tuple[list[_Part], str]:
    """Read what of a text is JSON: situations before explanations, whatever their order in an object.

    Returns also the text in which what was read so stands under its labels, so that nobody takes JSON for prose.
    """
    parts, rest, end, stop = [], "", 0, 0
    for start in _JSON.finditer(text):
        if start.end() < stop:
            continue
        try:
            value, stop = _decode(text, start.end())
            found = list(_flatten(value))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            break  # not JSON, or not all of it: read as text
        if found:
            parts += found
            lines = (f"\n{part.kind} {part.number or ''}: {' '.join(part.lines)}\n" for part in found if part.text)
            rest, end = f"{rest}{text[end : start.start()]}{''.join(lines)}", stop
    return parts, rest + text[end:]


def _decode(text: str, start: int) -> tuple[object, int]:
    """Return the JSON value that begins at `start`, or a Python object up to the last bracket of its kind, and where it ends."""
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except json.JSONDecodeError:
        end = text.rindex("}" if text[start] == "{" else "]") + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes
            return ast.literal_eval(text[start:end]), end


def _flatten(value: object) -> Iterator[_Part]:
    if isinstance(value, dict):
        labels = [(_LABEL.fullmatch(str(key).strip().replace("_", " ")), item) for key, item in value.items()]
        for kind in ("situation", "explanation"):
            for label, item in labels:
                item = item[0] if isinstance(item, list) and item else item
                if label and _kind(label) == kind:
                    yield _Part(kind, label["number"], lines=item.split("\n") if isinstance(item, str) else [])
        value = list(value.values())
    for item in value if isinstance(value, list) else []:
        yield from _flatten(item)


#: What a judge may call its score, as a key of JSON or in prose.
SCORE_KEYS = ("score", "probability", "acceptability", "answer", "rating", "value")
_DECIMAL = r"(?<![\w.])(?<!\d,)[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w|[.,]\d)"
#: A number, with what makes it a per cent or a ratio.
_FIGURE = rf"(?P<part>{_DECIMAL})(?:\s*(?:(?P<percent>%|per ?cent\b)|(?:/|out of)\s*(?P<whole>{_DECIMAL})))?"
_SCALE = re.compile(
    r"(?:\b(?:scale|range|between|from)\D{0,20}|[(\[])0(?:\.0)?\s*(?:-|–|to|and)\s*1(?:\.0)?(?![\d.]*\d)", re.IGNORECASE
)
_LABELLED = re.compile(
    rf"\b(?:{'|'.join(SCORE_KEYS)})\b[\s*_\"'`]*(?:[:=]|\bis\b|\bof\b|\bwould be\b)[\s*_\"'`]*{_FIGURE}", re.IGNORECASE
)
_FENCE = re.compile(r"```(?:[a-z]+\b)?(.*?)```", re.DOTALL | re.IGNORECASE)
#: An object, which may hold others, which hold none.
_OBJECT = re.compile(r"\{(?:[^{}]++|\{[^{}]*+\})*+\}")
#: What makes a figure the lower end of a range, or one of two.
_RANGE = re.compile(rf"[ \t*_\"'`]*(?:[-–—]|\b(?:to|or)\b)[ \t*_\"'`]*{_FIGURE}", re.IGNORECASE)


def parse_score(text: str) -> float | None:
    """Read a score from 0 to 1 in a model's own words; None when there is none.

    Understood are the JSON asked for (also in a fence or within prose, its number also as text), a number after the word
    score (probability, answer ...), and the only number in prose; each also as a per cent or a ratio ("8/10"). Nothing
    is guessed: a number outside the scale, several different ones, a range, or words only ("probably") are no score.
    """
    text = (unwrap(text) or "").strip()
    whole = _score_entry(text)
    parts = [*_FENCE.findall(text), *_OBJECT.findall(text)] if whole is None else []
    entries = [entry for entry in (whole, *map(_score_entry, parts)) if entry is not None]
    labelled = [] if entries else list(_LABELLED.finditer(text))
    ranges = filter(None, (_RANGE.match(text, figure.end()) for figure in labelled))
    if any(_value(upper) <= 1 for upper in ranges):  # "0.8 - 10 people agree" is none
        return None
    prose = "\n".join(_SCALE.sub(" ", entry) for entry in entries or [text])
    numbers = {_value(figure) for figure in labelled or re.finditer(_FIGURE, prose, re.IGNORECASE)}
    return numbers.pop() if len(numbers) == 1 and 0 <= min(numbers) <= 1 else None


def _score_entry(text: str) -> str | None:
    """Return the value of a JSON object's score, as text; None when it is not such an object."""
    try:
        value = json.loads(text.strip())
    except (ValueError, RecursionError):
        return None
    lower = {str(key).lower(): entry for key, entry in value.items()} if isinstance(value, dict) else {}
    return next((str(lower[key]) for key in SCORE_KEYS if key in lower), None)


def _value(figure: re.Match[str]) -> float:
    """Return a number: of a per cent its share of 1, of a ratio its value."""
    whole = 100 if figure["percent"] else float(figure["whole"] or 1)
    return float(figure["part"]) / whole if whole else float("inf")
