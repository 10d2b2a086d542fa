"""What stages made: the records a run has of them, whether they still hold, and how another run takes them over.

A record is ``runs/<profile>/stages/<stage>.<look>.json``. It names the files that the stage made, and what they were made of. While
it is there and its files are whole, there is nothing to do.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from drot_utils.study.errors import DrotError, MissingInputError, ParamsError, wrap_os_error
from drot_utils.study.graph import Stage, Stamp
from drot_utils.study.params import Params, load_params
from drot_utils.study.paths import Run, atomic, exclusive, output_root, replace_folder, resolve, to_json, write_text

BATCH = "DROT_STAGE"  # names, for a notebook that the runner started, the stage it is
BY_HAND = "by-hand"  # stands for the stamp of what was run by hand
PLAY = "-play"  # ends the name of the run that notebooks by hand write to
Made = tuple[Run, dict[str, Any]]  # a run that has what a stage makes, and its record
SMALL = 1_000_000  # bytes: a smaller file is copied into another run, as editors (JupyterLab too) write in place


@dataclass(frozen=True)
class Finished(Run):
    """A run that is only read: what speeds up the next reading goes to the run by hand, with links to what the run has."""

    def work(self, name: str) -> Path:
        """Return a directory of the run by hand (see `Run.work`)."""
        return Run(f"{self.profile.removesuffix(PLAY)}{PLAY}").work(name)


def record_path(run: Run, stage: str, look: str) -> Path:
    """Return where the record of a stage lies: the runner's target."""
    return run.root / "stages" / f"{stage}.{look}.json"


def closing_path(run: Run, stage: str) -> Path:
    """Return where a notebook leaves its record for the runner."""
    return run.work("closing") / f"{stage}.json"


def read_records(run: Run) -> dict[str, dict[str, Any]]:
    """Return the records of a run by stage."""
    found = {path.name.split(".")[0]: _read_record(path) for path in sorted((run.root / "stages").glob("*.*.json"))}
    return {stage: record for stage, record in found.items() if record}


def read_params(run: Run) -> Params:
    """Return the parameters that a run was made with, by its records; what they do not name is as in its profile.

    Raises
    ------
    MissingInputError
        When there is no such run.
    ParamsError
        When this version reads other parameters than the one that made the run.
    """
    runs = [path.parent.name for path in sorted((output_root() / "runs").glob("*/stages"))]
    if run.profile not in runs:
        todo = f"choose among: {', '.join(runs)}" if runs else "make demo"
        raise MissingInputError("there is no such run" if runs else "no run yet", where=run.profile, todo=todo)
    values: dict[str, Any] = {"profile": run.profile}
    for record in read_records(run).values():
        for name, value in record.get("inputs", record).get("parameters", {}).items():
            values |= (
                {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
            )
    profile = run.profile.removesuffix(PLAY)
    files = (Run(profile).root / "params.yaml", resolve(f"params/{profile}.yaml"), resolve("params/demo.yaml"))
    known = {key: value for key, value in values.items() if not key.startswith("stage.")}
    try:
        return load_params(next(file for file in files if file.exists()), known)
    except ParamsError as error:
        todo = "use the version that made it, or make the run again"
        raise ParamsError(f"another version made this run ({error.found})", where=run.profile, todo=todo) from error


def _read_record(path: Path) -> dict[str, Any]:
    record = _read_json(path)
    return record if isinstance(record.get("files"), dict) else {}  # of a version that kept none


def _read_json(path: Path) -> dict[str, Any]:
    # Empty where there is none: just being replaced, or damaged.
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def begin(run: Run, stage: str, keep: Collection[str] = ()) -> None:
    """Forget what a stage made: it is about to be made anew.

    Its figures and tables are removed, too, but for `keep`: what it does not make again, as a table of votes where there are
    none any more, must not be shown as the run's.
    """
    for path in (run.root / "stages").glob(f"{stage}.*.json"):
        for name in _read_record(path).get("files", {}):
            if name.startswith("figures/") and name not in keep:
                _place(run, name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def finish(run: Run, stage: str, look: str, record: dict[str, Any]) -> None:
    """Keep the record of a stage that ended well, and put all records together in ``manifest.json``."""
    with exclusive(run.work("stages") / ".lock", wait=True):  # two stages may end at once
        begin(run, stage, keep=record["files"])
        write_text(record_path(run, stage, look), _json(record))
        records = read_records(run)
        write_text(run.manifest, _json({"profile": run.profile, "stages": records}))


def list_files(run: Run, paths: list[Path]) -> dict[str, int]:
    """Return the files among `paths` and below them that are results of a run, by name, with their sizes.

    Unfinished work, records and what lies elsewhere is left out.
    """
    found = {}
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            for kind, folder in _places(run).items():
                name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""
                if file.is_file() and name and not name.startswith(("work/", "stages/", "manifest.json")):
                    found[f"{kind}/{name}"] = file.stat().st_size
    return dict(sorted(found.items()))


def find_broken(run: Run, record: dict[str, Any]) -> str | None:
    """Return the first file of a record that is missing or has another size, or None where all are whole."""
    for name, size in record["files"].items():
        try:
            if _place(run, name).stat().st_size != size:
                return name
        except OSError:
            return name
    return None


def find_made(run: Run, stage: str, look: str) -> Made | None:
    """Return the run that has what a stage makes, this one before others, with its record; None where none has.

    What lies in another's run by hand is not taken: half a notebook may have been run over it.
    """
    for place in (run, *(other for other in other_runs(run) if not other.profile.endswith(PLAY))):
        record = _read_record(record_path(place, stage, look))
        if record and not find_broken(place, record):
            return place, record
    return None


def settle(run: Run, stages: Iterable[Stage], stamps: dict[str, Stamp]) -> list[str]:
    """Forget the records whose files are no longer whole, take over from other runs what is the same, and return what is to run."""
    missing = []
    for stage in stages:
        look = stamps[stage.name].look
        made = find_made(run, stage.name, look)
        if made and made[0] != run:
            try:
                take_over(run, stage.name, look, *made)
            except MissingInputError:  # just being made anew, or removed
                made = None
        if not made:
            record_path(run, stage.name, look).unlink(missing_ok=True)
            missing.append(stage.name)
    return missing


def take_over(run: Run, stage: str, look: str, other: Run, record: dict[str, Any]) -> None:
    """Link the files of a record into `run`, and keep the record there, too, with the answers that were paid for.

    Every file of a run is written anew and renamed, never changed in place. So either run may go its own way, or be removed.

    Raises
    ------
    MissingInputError
        When a file vanishes meanwhile; `run` has no record of the stage then.
    """
    begin(run, stage)  # should this be killed, no record must stand for a mixture
    for name in record["files"]:
        link(_place(other, name), _place(run, name))
    copy_answers(other, run)
    finish(run, stage, look, {**record, "from": record.get("from") or other.profile})


def link(source: Path, target: Path) -> None:
    """Give a file a second name in another run; a small file, and any where the file system has no hard links, is copied.

    Raises
    ------
    MissingInputError
        When `source` is not there, or vanishes meanwhile.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = False
        if source.stat().st_size >= SMALL:
            with suppress(OSError):
                os.link(source, temporary)
                linked = True
        if not linked:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except FileNotFoundError as error:
        raise MissingInputError("this file of another run is gone", where=str(source), todo="run again") from error
    except OSError as error:
        raise wrap_os_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)  # also where both are one file, which renaming leaves as it is


def copy_answers(source: Run, target: Run) -> None:
    """Let a run that has no answers of endpoints begin with those of another, so that they are not paid for again."""
    if not source.answers.exists() or target.answers.exists():
        return
    with atomic(target.answers) as temporary:
        try:  # with what is still in the write-ahead log, and whole while another process writes
            with (
                closing(sqlite3.connect(f"{source.answers.as_uri()}?mode=ro", uri=True)) as old,
                closing(sqlite3.connect(temporary)) as new,
            ):
                old.backup(new)
        except sqlite3.Error:  # a run that is read-only
            shutil.copyfile(source.answers, temporary)


def borrow(run: Run, name: str) -> Path:
    """Return the folder `name` of unfinished work, with links to the shards that other runs have and this one has not.

    Its name must say all that its files depend on. A number that is there is not borrowed: another machine's result of
    the same shard may differ in its last bits.
    """
    have = {path.name.split("-")[0] for path in run.work(name).glob("[!.]*")}
    for other in other_runs(run):
        for path in sorted(other.work(name).glob("[!.]*")):
            if (number := path.name.split("-")[0]) not in have:
                with suppress(MissingInputError):
                    link(path, run.work(name) / path.name)
                    have.add(number)
    return run.work(name)


def borrow_whole(run: Run, name: str) -> Path:
    """Return the folder `name` of work, linked from another run where this one has none; its files belong together."""
    for other in other_runs(run):
        if not run.work(name).exists() and other.work(name).exists():
            with suppress(MissingInputError):
                replace_folder(run.work(name), partial(_link_all, other.work(name)))
    return run.work(name)


def take_model(run: Run, name: str, file: str, fingerprint: str) -> bool:
    """Tell whether the run has the model with this fingerprint in its record `file`, after linking it from another run that has."""
    for place in (run, *other_runs(run)):
        record = _read_json(place.model(name) / file)
        if record.get("fingerprint") == fingerprint:
            with suppress(MissingInputError):  # just being replaced
                if place != run:
                    replace_folder(run.model(name), partial(_link_all, place.model(name)))
                return True
    return False


def _link_all(source: Path, target: Path) -> None:
    for path in source.glob("[!.]*"):
        link(path, target / path.name)


def other_runs(run: Run) -> Iterator[Run]:
    """Yield the other runs below the same output folder."""
    for folder in sorted(path.parent for path in (output_root() / "runs").glob("*/stages")):
        other = Run(folder.name)
        if other.work("") != run.work(""):  # a run that is only read lends to the reading: see `Finished`
            yield other


def overlay(run: Run, base: Run) -> None:
    """Let a run by hand read what `base` has and it has not: by links, renewed where `base` changed since."""
    mine = read_records(run)
    for stage, record in read_records(base).items():
        look = record.get("look", BY_HAND)
        have = mine.get(stage)
        if (have is None or have.get("from")) and (have or {}).get("look") != look and not find_broken(base, record):
            with suppress(MissingInputError):  # just being made anew
                take_over(run, stage, look, base, record)
    copy_answers(base, run)


def explain(stamp: Stamp, old: dict[str, Any] | None) -> list[str]:
    """Say in a few words each what changed since a record was made."""
    if old is None or "inputs" not in old:
        return ["has not run"]
    new, before = stamp.inputs, {name: {} for name in stamp.inputs} | old["inputs"]
    was, now = flatten(before["parameters"]), flatten(new["parameters"])
    why = [f"{key}: {was.get(key)} -> {now.get(key)}" for key in _changed(was, now)]
    why += [f"{name} changed" for name in _changed(before["data"], new["data"])]
    why += [f"{_say(name)} changed" for name in _changed(before["code"], new["code"])]
    why += [f"after {name}" for name in _changed(before["needs"], new["needs"])]
    return why or [f"{_say(name)} changed (drawing only)" for name in _changed(before["look"], new["look"])]


def describe_stages(run: Run, stages: list[Stage], stamps: dict[str, Stamp], made: dict[str, Made | None]) -> str:
    """Say for each stage whether it is there, is taken over or would run, and why; and for how long in all.

    `made` is what `find_made` returned for each.
    """
    lines, total = [], 0.0  # not records' times: what a stage had in its shards took none
    known = [read_records(place) for place in (run, *other_runs(run))]
    for stage in stages:
        stamp = stamps[stage.name]
        if found := made[stage.name]:
            how = "is there" if found[0] == run else f"is taken over from runs/{found[0].profile}"
            lines.append(f"{stage.name:34} {how}")
            continue
        records = [records[stage.name] for records in known if stage.name in records]
        # Of a record that cannot be taken over (a run by hand's, or its files are gone) there is nothing to explain.
        why = min(filter(None, (explain(stamp, record) for record in records)), key=len, default=["has not run"])
        if (own := known[0].get(stage.name)) and own.get("look") == stamp.look:
            why = [f"{find_broken(run, own)} is not as it was written"]
        total += stage.seconds
        more = f" and {len(why) - 4} more" if len(why) > 4 else ""
        lines.append(f"{stage.name:34} runs, about {tqdm.format_interval(stage.seconds)}: {'; '.join(why[:4])}{more}")
    return "\n".join([*lines, f"about {tqdm.format_interval(total)} in all" if total else "nothing to run"])


def branch_run(params_file: str, name: str, overrides: dict[str, Any], dry: bool = False) -> Path:
    """Name another run, with some parameters changed, and return its parameter file, ``runs/<name>/params.yaml``.

    It begins with the answers of the first run (but where it is `dry`), as all its stages may be others.

    Raises
    ------
    DrotError
        When a run of that name has other parameters, or as `load_params`.
    """
    base = load_params(params_file, {**overrides, "profile": name})
    run, first = Run(name), load_params(params_file).profile
    path = run.root / "params.yaml"
    if name == first or (run.root.exists() and not path.exists()):
        raise DrotError("a run of this name is there already", where=str(run.root), todo="choose another name for --as")
    if path.exists() and (there := load_params(path)) != base:
        old, new = (flatten(params.model_dump(mode="json")) for params in (there, base))
        differ = [f"{key}: {old.get(key)}, not {new.get(key)}" for key in _changed(old, new)]
        raise DrotError(
            f"the run of this name has other parameters ({'; '.join(differ)})", where=str(path),
            todo="choose another name for --as, or remove the folder",
        )  # fmt: skip
    all_values = base.model_dump(mode="json")
    # `..` of a link leads elsewhere than in the path's text.
    extends = os.path.relpath(resolve(params_file).resolve(), run.root.resolve())
    values: dict[str, Any] = {"extends": extends, "profile": name}
    for section, *below in (key.split(".") for key in overrides):
        if below:
            values.setdefault(section, {})[below[0]] = all_values[section][below[0]]
        else:
            values[section] = all_values[section]
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    if not dry:
        copy_answers(Run(first), run)
    return path


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _say(place: str) -> str:
    return "the notebook" if place == "cells" else place


def flatten(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _places(run: Run) -> dict[str, Path]:
    return {"figures": run.figures, "run": run.root}


def _place(run: Run, name: str) -> Path:
    kind, rest = name.split("/", 1)
    return _places(run)[kind] / rest


def _json(value: Any) -> str:
    return to_json(value, indent=2, sort_keys=True) + "\n"
