"""What a cache's requests took: calls, tokens, and what the servers did not do as asked; kept with it over all restarts."""

from dataclasses import dataclass

from drot_utils.cache import Cache

METERED = "metered"  # answers whose tokens the server counted
UNMETERED = "unmetered"  # what may have been billed without being counted: tokens are upper bounds
IGNORED = "ignored: "  # followed by the setting that a server passed over


@dataclass(frozen=True)
class Line:
    """One line: of a model and transport, what happened, how often, and the tokens of all times together."""

    model: str
    transport: str
    entry: str
    times: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0


def enter(cache: Cache, line: Line) -> None:
    """Add to the line of the same model, transport and entry, or start it."""
    cache.query(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET times = times + excluded.times, "
        "prompt_tokens = prompt_tokens + excluded.prompt_tokens, completion_tokens = completion_tokens + excluded.completion_tokens",
        *vars(line).values(),
    )


def read_ledger(cache: Cache, model: str | None = None) -> list[Line]:
    """Return all lines, or those of one model, in a fixed order."""
    lines = [Line(*row) for row in cache.query("SELECT * FROM ledger ORDER BY model, transport, entry")]
    return [line for line in lines if model in (None, line.model)]


def read_ignored(cache: Cache, model: str) -> dict[str, int]:
    """Return the settings that the model's servers were seen to pass over, with how often."""
    ignored: dict[str, int] = {}
    for line in read_ledger(cache, model):
        if line.entry.startswith(IGNORED):
            name = line.entry.removeprefix(IGNORED)
            ignored[name] = ignored.get(name, 0) + line.times
    return ignored
