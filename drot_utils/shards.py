"""Long work as a map over fixed shards: killed at any moment, a re-run does only what is missing and ends the same."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from drot_utils.executors import OpenWork, run_tasks
from drot_utils.paths import atomic
from drot_utils.progress import Progress
from drot_utils.schema import to_pandas
from drot_utils.settings import Executor

LOCAL = Executor(kind="local", workers=1, address=None)


def fingerprint(*parts: Any) -> str:
    """Return twelve hexadecimal digits that change with any of `parts` (tables, or what JSON can hold)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame):
            digest.update(part.to_csv(index=False).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def source_hash(*modules: str) -> str:
    """Return a hash of the named modules' code, for fingerprints: work done by other code is not taken over."""
    return fingerprint(
        [(Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in modules]
    )


def derive_seed(seed: int, stage: str, number: int) -> int:
    """Return the seed of a shard: a function of the run's seed, the stage's name and the shard's number only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{number}".encode()).digest()[:4], "big")


def map_shards(
    rows: pd.DataFrame,
    size: int,
    open_work: OpenWork,
    folder: Path,
    *,
    seed: int,
    stage: str,
    per_row: int = 1,
    unit: str = "rows",
    executor: Executor = LOCAL,
) -> pd.DataFrame:
    """Apply work to fixed stretches of `rows`, keeping every finished one on disk.

    Parameters
    ----------
    rows : DataFrame
        What there is to do; cut into stretches of `size` rows.
    size : int
        Rows a shard; part of the result's definition, as the seeds hang on it.
    open_work : callable
        Returns what gets a stretch and its seed and returns its result rows; not called when nothing is missing.
    folder : Path
        Where shards are kept. Its name must change with everything that the result hangs on (see `fingerprint`).
    seed : int
        The run's seed.
    stage : str
        Enters the shards' seeds and titles the progress.
    per_row : int
        Units of progress a row stands for.
    executor : Executor
        Who does it; the result does not hang on it.

    Returns
    -------
    DataFrame
        The shards' rows in order.

    Raises
    ------
    ValueError
        When `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least one row, not {size}")
    # Of no rows, one empty shard, so that the result has its columns.
    parts = [rows.iloc[start : start + size] for start in range(0, len(rows) or 1, size)]
    done = {number: result for number, result in _read_whole(folder) if number < len(parts)}
    missing = [(n, part, derive_seed(seed, stage, n)) for n, part in enumerate(parts) if n not in done]
    finished = sum(len(parts[number]) for number in done)
    with Progress(stage, len(rows) * per_row, unit, done=finished * per_row) as progress:
        for number, result in run_tasks(open_work, missing, executor):
            content = _encode(result)
            with atomic(folder / _name(number, content)) as temporary:
                temporary.write_bytes(content)
            done[number] = _decode(content)
            progress.update(len(parts[number]) * per_row)
    return pd.concat([done[number] for number in range(len(parts))], ignore_index=True)


def _name(number: int, content: bytes) -> str:
    # The checksum stands in the name: Parquet's own cover its pages, not what says how to read them.
    return f"{number:06d}-{zlib.crc32(content):08x}.parquet"


def _encode(result: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(result, preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _decode(content: bytes) -> pd.DataFrame:
    return to_pandas(pq.read_table(pa.BufferReader(content)))


def _read_whole(folder: Path) -> Iterator[tuple[int, pd.DataFrame]]:
    for path in folder.glob("*-*.parquet"):
        content, number = path.read_bytes(), int(path.stem.split("-")[0])
        if path.name == _name(number, content):
            yield number, _decode(content)
        else:
            path.unlink()  # a shard that is not whole is done again
