"""Tiny random models for the smoke profile and the tests: every code path, meaningless numbers."""

from copy import deepcopy
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from drot_utils.errors import ModelError
from drot_utils.paths import resolve

SPECIAL = ["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]"]


def build_tiny(name: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Make a tiny model with random weights, the same for the same seed.

    Parameters
    ----------
    name : {"tiny-llama", "tiny-t5", "tiny-bert"}
        A causal student, a seq2seq student, or an encoder.
    seed : int
        Seed of the weights.

    Returns
    -------
    model, tokenizer

    Raises
    ------
    ModelError
        For any other name.
    """
    # A copy: whoever adds a token to it adds it to his own.
    tokenizer = deepcopy(_tokenizer(name == "tiny-bert", name == "tiny-t5"))
    size = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "tiny-llama":
            config = LlamaConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=1024, tie_word_embeddings=True, **size,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        elif name == "tiny-t5":
            config = T5Config(
                d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **size
            )
            model = T5ForConditionalGeneration(config)
        elif name == "tiny-bert":
            config = BertConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=256, **size,
            )  # fmt: skip
            model = BertModel(config)
        else:
            raise ModelError(f"unknown tiny model {name!r}; expected tiny-llama, tiny-t5 or tiny-bert")
    return model.eval(), tokenizer


@cache
def _corpus() -> list[str]:
    return resolve("data/demo/teacher_plain.tsv").read_text(encoding="utf-8").splitlines()[1:801]


@cache
def _tokenizer(pairs: bool, ends: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [*_corpus(), "Action: Modifier: more ethical. unethical. Update: Explanation:"], trainer
    )
    if pairs:
        template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
        tokenizer.post_processor = processors.TemplateProcessing(
            **template, special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
        )
    elif ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )
