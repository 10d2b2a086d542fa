"""Parcels: files of requests for the Batch API, written down in the cache before they are sent."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drot_utils.answers import Work
from drot_utils.cache import Cache

MOST_LINES, MOST_BYTES = 50_000, 190_000_000  # OpenAI takes 50,000 requests and 200 MB a file


@dataclass(frozen=True)
class Parcel:
    """A file of requests.

    Attributes
    ----------
    token : str
        Our mark, by which it is found again at the server.
    lines : dict
        By the number of the line: the key of its request and the choices it asks for.
    id : str or None
        The server's number, None until it is known.
    """

    token: str
    lines: dict[str, tuple[str, list[int]]]
    id: str | None = None

    def path(self, cache: Cache) -> Path:
        """Return where the file lies."""
        return cache.path.with_name("batches") / f"{self.token}.jsonl"


def cut_work(works: list[Work]) -> Iterator[list[Work]]:
    """Cut what is missing into lists that make files of a size that the server takes, one line for each piece of work."""
    part, size = [], 0
    for work in works:
        length = len(json.dumps(work.request)) + 300
        for choices in [[number] for number in work.missing] if work.alone else [work.missing]:
            if part and (len(part) >= MOST_LINES or size + length > MOST_BYTES):
                yield part
                part, size = [], 0
            part.append(replace(work, missing=list(choices)))
            size += length
    if part:
        yield part


def pack(
    part: list[Work],
    path: str,
    place: str,
    cache: Cache,
    phrase: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Parcel:
    """Write a file of requests to `path` of the API at `place`, each in the server's words by `phrase`, and write it down."""
    parcel = Parcel(uuid.uuid4().hex, {f"{n:06d}": (work.key, work.missing) for n, work in enumerate(part)})
    file = parcel.path(cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="\n") as handle:
        for number, work in zip(parcel.lines, part, strict=True):
            line = {"custom_id": number, "method": "POST", "url": path, "body": phrase(work.outgoing())}
            handle.write(json.dumps(line, allow_nan=False) + "\n")
    with cache.transaction():
        cache.query("INSERT INTO batches VALUES (?, ?, NULL)", parcel.token, place)
        cache.put([(work.request, {}) for work in part])
        for number, (key, choices) in parcel.lines.items():
            cache.query(
                "INSERT INTO lines VALUES (?, ?, ?, ?)", parcel.token, number, key, json.dumps(choices)
            )
    return parcel


def note_id(parcel: Parcel, number: str, cache: Cache) -> Parcel:
    """Write down the server's number of a parcel."""
    cache.query("UPDATE batches SET id = ? WHERE token = ?", number, parcel.token)
    return replace(parcel, id=number)


def list_parcels(place: str, cache: Cache) -> list[Parcel]:
    """Return the parcels that went to a place and of which nothing was taken in yet."""
    parcels = []
    for token, number in cache.query("SELECT token, id FROM batches WHERE place = ? ORDER BY token", place):
        rows = cache.query("SELECT id, key, choices FROM lines WHERE token = ? ORDER BY id", token)
        parcels.append(
            Parcel(token, {line: (key, json.loads(choices)) for line, key, choices in rows}, number)
        )
    return parcels


def forget(parcel: Parcel, cache: Cache) -> None:
    """Strike a parcel off, and remove its file."""
    cache.query("DELETE FROM lines WHERE token = ?", parcel.token)
    cache.query("DELETE FROM batches WHERE token = ?", parcel.token)
    parcel.path(cache).unlink(missing_ok=True)


def find_request(key: str, cache: Cache) -> dict[str, Any]:
    """Return the request of a key, as it was packed."""
    return json.loads(cache.query("SELECT body FROM requests WHERE key = ?", key)[0][0])
