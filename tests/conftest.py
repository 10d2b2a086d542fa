"""Fixtures that several tests share; what is expensive is made once a session."""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as a run sets it; torch reads it when it is imported

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fault_server import USE, make_endpoint, make_questions  # noqa: F401  (for the tests, which take them from here)
from hypothesis import HealthCheck, settings
from shard_work import FORKS, open_worker, train_forked

from drot_utils.__main__ import main
from drot_utils.data import corpora
from drot_utils.data.gold import read_gold
from drot_utils.engine import shards, trainer
from drot_utils.engine.load import build_tiny
from drot_utils.llm.cache import Cache
from drot_utils.method import student
from drot_utils.method.nli import filter_unique
from drot_utils.method.student import make_examples
from drot_utils.people import exchange, forms
from drot_utils.study import outputs
from drot_utils.study.kernels import KERNELS, kernel_server
from drot_utils.study.params import Adapter, Params, load_params
from drot_utils.study.paths import ROOT, Run, sha256
from drot_utils.study.record import Study

# A machine that others keep busy must fail no test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

CPU = torch.device("cpu")

#: How servers wrap an answer (#) in a model's thoughts (@) and special tokens.
WRAPPERS = [
    "<think>@</think>#", "<think>\n@\n</think>\n\n#", "@</think>\n#", "<think></think>#", "<thinking>@</thinking>\n#",
    "<Thought>@</Thought>#", "<seed:think>@</seed:think>#", "[THINK]@[/THINK]#", "◁think▷@◁/think▷#",
    "<|begin_of_thought|>@<|end_of_thought|><|begin_of_solution|>#<|end_of_solution|>", "<think>@</think>@<think>@</think>\n#",
    "<think>@<think>@</think>#", "@</think>@</think>#", "[THINK]@[/THINK]#</s>", "<think>@</think>#<|im_end|>\n<|endoftext|>",
    "<|channel|>analysis<|message|>@<|end|><|start|>assistant<|channel|>final<|message|>#<|return|>",
    "<|start|>assistant<|channel|>analysis<|message|>@<|end|><|start|>assistant<|channel|>commentary<|message|>@<|end|>"
    "<|start|>assistant<|channel|>final <|constrain|>json<|message|>#<|end|>",
    "<|channel|>final<|message|>#", "analysisThe user wants @assistantfinal#",
    "<|im_start|>assistant\n#<|im_end|>", "<|start_header_id|>assistant<|end_header_id|>\n\n#<|eot_id|>",
    "<s>#</s>", "<bos><start_of_turn>model\n#<end_of_turn>\n<eos>", "[/INST] # [/INST]", "#<|im_end|>\n<|im_start|>user\n@",
    "#<｜end▁of▁sentence｜>", *(f"#{mark}" for mark in ("<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "[/INST]")),
    *(f"#\n{mark}\n" for mark in ("<|end|>", "<|return|>", "<|endoftext|>", "<eos>", "<|END_OF_TURN_TOKEN|>")),
]  # fmt: skip
#: Thoughts (@) that were cut off.
CUT = [
    "<think>@", "<think>\n@", "<thinking>@", "[THINK]@", "◁think▷@", "<|begin_of_thought|>@", "<think>@</think><think>@", "Well.\n<think>@",
    "<|channel|>analysis<|message|>@", "<|channel|>analysis<|message|>@<|end|>", "analysisThe user wants @", "<s><think>@</s>",
]  # fmt: skip


#: The files that take the longest come first, so that no worker waits for one at the end. The worker that did test_trainer is most
#: often the one that comes to test_shards, too: both fork from the same server.
LONGEST = [
    f"test_{name}.py"
    for name in ("runner", "trainer", "seq2seq", "plan", "shards", "topics", "votes", "figures", "client", "kernels", "consensus")
]  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than processors, as each waits a fifth of its time: for a server, a process it started, or the disk."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Leave the files in this order: xdist would begin with those of the most tests. Start one server of kernels for all workers.

    It imports the libraries when the first of them asks.
    """
    config.option.loadscopereorder = False
    if not hasattr(config, "workerinput"):  # workers inherit the environment
        stack = ExitStack()
        config.add_cleanup(stack.close)
        place = Path(stack.enter_context(TemporaryDirectory())) / "socket"
        os.environ |= stack.enter_context(kernel_server(place, dict(os.environ)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Spare the collector of garbage all that has been imported: else it takes a second each time that a model is let go."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the checkout, reads a key, or talks to a runner."""
    monkeypatch.setenv("DROT_OUTPUT", str(tmp_path / "out"))
    monkeypatch.delenv("DROT_PROGRESS", raising=False)
    monkeypatch.setenv("DROT_STAGE", "")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "out"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    """Workers, and the processes of a training, are forked, which is quicker than a start of Python."""
    monkeypatch.setattr(shards, "get_context", lambda _: FORKS)
    monkeypatch.setattr(shards, "_open_worker", partial(open_worker, dict(os.environ)))
    monkeypatch.setattr(student, "subprocess", SimpleNamespace(run=train_forked))


@pytest.fixture(scope="session")
def smoke() -> Params:
    """The smoke profile."""
    return load_params("params/smoke.yaml")


@pytest.fixture(scope="session")
def actions() -> pd.DataFrame:
    """The built-in actions."""
    return corpora.read_actions("data/demo/actions.tsv")


@pytest.fixture
def study(smoke: Params, output: Path) -> Study:
    """A study of the smoke profile in an empty folder."""
    return Study(smoke, Run("smoke"), "test")


def files_and_hashes(run: Run) -> dict[str, str]:
    """Return the hashes of all files of a run but those of unfinished work."""
    places = (run.root, run.figures)
    found = [
        path for place in places for path in place.rglob("*") if path.is_file() and run.work("") not in path.parents
    ]
    return {str(path): sha256(path) for path in found}


@pytest.fixture(params=["tiny-llama", "tiny-t5"])
def tiny_student(request: pytest.FixtureRequest):
    """A causal, then a seq2seq student, fresh for each test."""
    return build_tiny(request.param)


@pytest.fixture
def candidates() -> pd.DataFrame:
    """Six candidates of two prompts, one of which does not parse."""
    rows = pd.DataFrame(
        {
            "action_id": ["a1"] * 3 + ["a2"] * 3,
            "action": ["Setting a fire"] * 3 + ["Telling a lie"] * 3,
            "moral_variance": [1, 1, 1, -1, -1, -1],
            "candidate": [0, 1, 2, 0, 1, 2],
            "source": "student",
            "context": ["at a campsite", "at a camp site", "to keep warm", "to a judge", None, "in court"],
            "rationale": ["it is safe", "it is safe", "it is cold", "it harms", None, "it harms"],
            "raw": "raw text",
            "tokens": 5,
            "nli_kept": None,
            "critic_score": None,
            "kept": None,
        }
    )
    return rows.astype({"nli_kept": "boolean", "critic_score": "float64", "kept": "boolean"})


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache of answers."""
    return Cache(tmp_path / "answers.sqlite")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions and polls follow at once."""
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    monkeypatch.setattr("drot_utils.llm.server.PATIENCE", 0.0)
    monkeypatch.setattr("drot_utils.llm.batch.POLL", 0.01)


ALL_YES = {"q1": "Y", "q2": "Y", "q3": "Y", "q4": "Y"}
FORM = forms.EVALUATION_FORM


class _Replier(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        text = self.server.reply(body)
        said = {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        answer = {"object": "x", "model": body["model"], "choices": [{"index": 0, "finish_reason": "stop", **said}]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def replier() -> Iterator[ThreadingHTTPServer]:
    """A server on loopback that answers with what its `reply` makes of a request; `bodies` are the requests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Replier)
    server.bodies, server.url = [], f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def student_rows() -> pd.DataFrame:
    """Four rows to learn from, of three prompts."""
    return pd.DataFrame(
        {
            "action_id": ["a1", "a1", "a1", "a2"],
            "action": ["Setting a fire"] * 3 + ["Telling a lie"],
            "moral_variance": [1, 1, -1, -1],
            "context": ["at a campsite", "to keep warm in winter", "in a dry field", "to a judge"],
            "rationale": ["it is safe there", "people may freeze", "it may spread fast", "courts need the truth"],
        }
    )


@pytest.fixture
def asked(candidates):
    """Rows that annotators are asked about."""
    return candidates[candidates["context"].notna()].assign(set="greedy").reset_index(drop=True)


NASTY = (
    """<b>bold</b> & "quoted", it's ${action} $5 {{7*7}} </script><script>alert(1)</script> naïve – 火 😀 | \t end\\"""
)


@pytest.fixture
def nasty(asked):
    """The same rows with texts that hold any character."""
    return asked.assign(context=[f"{NASTY}{i}" for i in range(len(asked))], rationale=f"=1+1;{NASTY}")


@pytest.fixture
def key(asked, tmp_path):
    """The key of an evaluation form, exported in all formats."""
    return exchange.export_form(FORM, asked, tmp_path / "forms", 1, list(exchange.TOOLS))


def fill(tmp_path, name, answers):
    """Fill a copy of the exported form; answers by row_id, or the same for all rows."""
    form = pd.read_csv(tmp_path / "forms" / f"{FORM.name}.csv", dtype=str, keep_default_na=False)
    for question, value in answers.items():
        form[question] = [value[r] if isinstance(value, dict) else value for r in form["row_id"]]
    (tmp_path / "filled").mkdir(exist_ok=True)
    form.to_csv(tmp_path / "filled" / f"{FORM.name}-{name}.csv", index=False)


def make_adapter(**changes):
    """Return an adapter of rank 4 for all linear layers."""
    return Adapter(**{"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "target": "all-linear", **changes})


def fit_student(model_and_tokenizer, rows, settings, work, *, dtype=torch.float32, compiled=False, **changes):
    """Train a student for a few steps."""
    model, tokenizer = model_and_tokenizer
    params = load_params("params/smoke.yaml")
    place = {"device": "cpu", "dtype": str(dtype).removeprefix("torch."), "compile": compiled}
    compute = params.compute.model_copy(update=place)
    study = Study(params.model_copy(update={"student": settings, "compute": compute, "seed": 3}), Run("smoke"), "test")
    examples = make_examples(rows, tokenizer, settings, model.config.is_encoder_decoder)
    return trainer.train(study, model, examples, work, **{"learning_rate": 0.01, "epochs": 6, **changes})


def run_cells(notebook: str, params_file: Path | str, *, by_hand: bool = False, **parameters: object) -> dict:
    """Run a notebook's code in this process, which is quicker than a kernel, as the runner does or by hand; return its variables."""
    names = {}
    os.environ[outputs.BATCH] = "" if by_hand else notebook
    for cell in json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"params_file": str(params_file), **parameters}
    plt.close("all")
    return names


def write_params(path: Path, base: str, **changes: object) -> Path:
    """Write a copy of a committed profile with some values changed (dotted keys)."""
    values = load_params(f"params/{base}.yaml").model_dump(mode="json")
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def run_study(
    params_file: Path | str, output: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a whole study in a process of its own, as `make` does."""
    command = [sys.executable, "-m", "drot_utils", "run", str(params_file), *options]
    # What a notebook's study sets for itself, and tests in this process may have set.
    quiet = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM")
    inherited = {name: value for name, value in os.environ.items() if name not in quiet}
    env = {**inherited, "DROT_OUTPUT": str(output), **environment}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line in this process, which is quicker than a start of Python; what it changes of the environment is put back."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with patch.dict(os.environ):
            status = main([str(each) for each in arguments])
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study, run end to end once with its own server of kernels and a marked key; returns its output folder."""
    folder = tmp_path_factory.mktemp("smoke")
    done = run_study(
        "params/smoke.yaml", folder, "--cores", "2", OPENAI_API_KEY="sk-marked-secret-0123456789", **{KERNELS: ""}
    )
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    (folder / "stdout.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    return folder


def write_published_gold(path: Path) -> Path:
    """Write the built-in labels in the form of the published gold: valid or not, a split, no votes."""
    rows = read_gold(["data/demo/critic_annotations.tsv"], corpora.read_actions("data/demo/actions.tsv"))
    part = rows["action_id"].str[-1].map({"8": "dev", "9": "test"}).fillna("train")
    rows = rows.assign(quality=rows["valid"].astype(int), part=part)
    names = {"moral_variance": "moral-variance", "quality": "context-quality", "part": "split"}
    columns = ["action", "moral_variance", "context", "rationale", "quality", "part"]
    rows[columns].rename(columns=names).to_csv(path, sep="\t", index=False, quoting=3)
    return path


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let this process find a file system without locks, which says so by the error of the given number."""

    def refuse(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", flock)

    return refuse


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Inside the returned context no file can grow beyond so many bytes, as on a disk that is full."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


NEEDS_TEX = pytest.mark.skipif(not which("pdflatex"), reason="pdflatex is not installed")


def typeset(paths: list[Path], folder: Path) -> list[str]:
    """Typeset tables with booktabs, each on a page of an article, and return what is wrong: errors, and what is too wide or too long."""
    parts = [f"\\typeout{{AT {path.stem}}}\n{path.read_text(encoding='utf-8')}\n\\clearpage" for path in paths]
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n\\begin{document}"
    (folder / "all.tex").write_text("\n".join([head, *parts, "\\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "all.tex"]
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    log = (folder / "all.log").read_text(encoding="utf-8", errors="replace")
    return re.findall(r"^(?:!|Overfull \\hbox|LaTeX Warning: Float too large).*|undefined.*", log, re.MULTILINE)


def all_new(groups):
    """The NLI filter of a model to which no context entails another one."""
    return filter_unique(groups, lambda premises, hypotheses: np.zeros(len(premises)), 0.5)
