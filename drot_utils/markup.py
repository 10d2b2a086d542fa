"""What models wrap their words in: thoughts, end marks, markdown, quotation marks, leftovers of JSON; found and taken off.

Every pattern is anchored, bounded or possessive: it takes time in proportion to the text's length.
"""

import re

#: Lines of a kind: the beginning of a list item, a heading, and what holds no words (blank lines, code fences, rules).
ITEM = re.compile(r"[\s>]*+(?:[-+*•▪◦–—]|\(?(?:\d{1,3}[.)]|[A-Ca-c]\)))(?:\s+|$)")
HEADING = re.compile(r"[\s>]*+#{1,6}\s")
BLANK = re.compile(r"[\s>]*+(?:(?:```|~~~)\w*+|[-*_=\s]*+)\s*+$")
#: What may stand before a label, as a regular expression: signs of quotation, lists, headings and emphasis.
SIGNS = r"[\s>#*+•▪◦–—_`\"“”'‘’\[({|-]*+"
#: Characters without width, to be left out with `str.translate`.
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))

_EMPHASIS = [
    re.compile(rf"(?<![\w{s}])[{s}]{{1,3}}(?=[^\s{s}])([^{s}]+)(?<=\S)[{s}]{{1,3}}(?![\w{s}])") for s in "*_`"
]
_MARKS = re.compile(r"^(?:(?:[-+*•▪◦–—>]|#{1,6}|\(?(?:\d{1,3}[.)]|[A-Ca-c]\)))\s+)+")
_JSON_REST = re.compile(r'"\s*,\s*"?$')  # between two values of JSON that does not end
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»"}
#: Words for nothing, in small letters: those of models, and those that programs write into empty cells.
NOTHING = {"n/a", "none", "null", "not applicable", "nan", "<na>"}

#: Where a model's notes to itself begin and end, as tags or special tokens.
_THOUGHT = re.compile(
    r"[<◁]/?(?i:(?:\w{1,12}:)?(?:think(?:ing)?|thoughts?))[>▷]|\[/?THINK\]|<\|(?P<token>begin|end)_of_thought\|>"
)
#: gpt-oss: that it speaks in channels, and where its answer begins. Decoded without special tokens, only the words are left.
_CHANNEL = re.compile(r"\A\s*+analysis(?=[A-Z\"'])|<\|channel\|>")
_FINAL = re.compile(
    r"<\|channel\|>\s?final\b[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>|assistantfinal"
)
#: Special tokens of chat templates: those before the first word open an answer, any other one ends it.
_MARK = r"<[|｜](?!begin_of_thought)[\w▁]{1,40}[|｜]>|</?s>|<(?:start_of_turn|end_of_turn|bos|eos|pad|eot)>|\[/?INST\]"
_OPENING = re.compile(rf"(?:\s*+(?:{_MARK})(?:(?:assistant|model)(?=[ \t]*+[\n<]))?)*+")
_END = re.compile(_MARK)


def unwrap(text: str) -> str | None:
    """Return what a model answers, without its thoughts, other channels and special tokens.

    Of several thoughts, what follows the closing mark of the last one is read, with or without an opening mark.

    Returns
    -------
    str or None
        None when a thought was begun and not ended: then there is no answer.
    """
    if _CHANNEL.search(text):
        finals = list(_FINAL.finditer(text))
        if not finals:
            return None
        text = text[finals[-1].end() :]
    closing = [mark.end() for mark in _THOUGHT.finditer(text) if "/" in mark[0] or mark["token"] == "end"]
    text = text[closing[-1] :] if closing else text
    text = text[_OPENING.match(text).end() :]
    end = _END.search(text)
    text = text[: end.start()] if end else text
    return None if _THOUGHT.search(text) else text


def clean(text: str) -> str:
    """Take off what a text is wrapped in; what is clean stays as it is.

    Returns
    -------
    str
        One line without emphasis, list signs, quotation marks around all of it, and final full stop; "" when no letter
        or digit is left, or only a word for nothing ("N/A").
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
