"""What a writer is asked, and the form of its answer: appendix A (teacher) and appendix D.2 (student)."""

import re

from drot_utils.data.parsing import Parsed

#: The teacher's zero-shot prompt, appendix A, word for word.
TEACHER_PROMPT = """\
Given an action, write down a
situation in which the action is
more {direction}
and give a reason for
why it makes the action
more {direction}.
Use the following format.

Action:
Situation:
Explanation:

Action: {action}
Situation:"""

#: The word of appendix A for a moral variance.
DIRECTIONS = {1: "ethical", -1: "unethical"}
_STUDENT = re.compile(r"\s*Update:\s*(?P<context>.+?)\.?\s*Explanation:\s*(?P<rationale>.+?)\s*$", re.DOTALL)


def teacher_prompt(action: str, moral_variance: int) -> str:
    """Fill appendix A's prompt."""
    return TEACHER_PROMPT.format(action=action, direction=DIRECTIONS[moral_variance])


def teacher_response(context: str, rationale: str) -> str:
    """Write a context and a rationale the way a model continues the prompt (the inverse of `parsing.parse_teacher`)."""
    return f" {context}\nExplanation: {rationale}"


def student_source(action: str, moral_variance: int, seq2seq: bool) -> str:
    """Write the student's prompt, appendix D.2; a causal student continues after a line break."""
    source = f"Action: {_sentence(action)}\nModifier: more {DIRECTIONS[moral_variance]}."
    return source if seq2seq else f"{source}\n"


def student_target(context: str, rationale: str) -> str:
    """Write what the student learns to answer, appendix D.2."""
    return f"Update: {_sentence(context)} Explanation: {_sentence(rationale)}"


def parse_student(text: str) -> Parsed | None:
    """Read a student's answer; None when it does not have the form of `student_target`."""
    match = _STUDENT.match(text)
    context, rationale = (_clean(part) for part in match.groups()) if match else ("", "")
    return Parsed(context, rationale) if context and rationale else None


def _clean(text: str) -> str:
    return " ".join(text.split()).strip(' *_"“”').removesuffix(".").strip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
