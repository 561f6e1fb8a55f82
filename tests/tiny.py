"""Tiny models with random weights in the Hub's layout, one line an architecture: no network, a second each."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "How do I reset the password of my card?",
    "The parcel has not arrived, where is it?",
    "def add(one, two): return the sum of both numbers",
    "Please cancel the order and send the money back.",
    "My card was charged twice in another country.",
    "Which documents do I need for a new passport?",
]
WORDS = 300  # entries of each vocabulary, special tokens included: every byte, and some merges

# The special tokens of each family as its tokenizer_config.json names them. GPT-2, Llama 3, SmolLM, Phi: no padding.
BERT = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
GPT2 = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
LLAMA2 = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
LLAMA3 = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
QWEN = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
GEMMA = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
OPT = {"bos": "</s>", "eos": "</s>", "unk": "</s>", "pad": "<pad>"}
OLMO = {"eos": "<|endoftext|>", "pad": "<|pad|>"}

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 16}
XL = SIZES | {"max_position_embeddings": 130}  # RoBERTa counts its positions from 2


@dataclass(frozen=True)
class Tiny:
    """An architecture: its configuration, the class whose checkpoint the Hub has, its tokenizer, and what is refused.

    `spare` are rows of the table beyond the vocabulary; `refused` has the reason by trial, "" for all;
    `query_value` counts the layers that make queries and values, in two blocks.
    """

    name: str
    config: str
    kind: str
    tokens: dict
    sizes: dict
    spare: int = 0
    refused: dict = field(default_factory=dict)
    query_value: int = 4

    def why_not(self, trial: str) -> str | None:
        """The words with which a trial is refused, or None if it works."""
        return self.refused.get(trial, self.refused.get(""))

    def write(self, folder: Path) -> Path:
        """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
        tokenizer = tokenizer_of(self.tokens)
        if self.spare < 0:
            tokenizer.add_tokens(["<picture>"], special_tokens=True)  # as in Gemma 3: beyond the table
        tokenizer.save_pretrained(folder)
        names = ("bos", "eos", "pad", "cls", "sep", "mask")
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
        sizes = {"vocab_size": len(tokenizer) + self.spare, **ids, **self.sizes}
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.config}Config")(**sizes)
        model = getattr(transformers, f"AutoModel{self.kind}").from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide one that is lost or rounded
                parameter.data.normal_(std=0.02)
        model.save_pretrained(folder, max_shard_size="60KB" if "sharded" in self.name else "5GB")
        return folder


def tokenizer_of(tokens: dict, words: int = WORDS) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=list(dict.fromkeys(tokens.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=128, **{f"{kind}_token": token for kind, token in tokens.items()}
    )


def named(name: str) -> Tiny:
    """The architecture of this name."""
    return next(model for model in ENCODERS + DECODERS if model.name == name)


def made(name: str, folder: Path) -> Path:
    """The model of this name, written, which reads as much at once as its family does: notebooks have long prompts."""
    folder.mkdir()
    model = named(name)
    longer = {size: 514 for size in ("max_position_embeddings", "n_positions") if size in model.sizes}
    replace(model, sizes=model.sizes | longer).write(folder)
    edit(folder / "tokenizer_config.json", model_max_length=512)
    return folder


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}))


_DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
_DEBERTA = SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
_DEBERTA |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
_MODERN = SIZES | {"global_attn_every_n_layers": 2, "local_attention": 16}
_MOBILE = SIZES | {"embedding_size": 16, "intra_bottleneck_size": 16}
_T5 = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
_NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
_BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 2}
_TIED = GROUPED | {"tie_word_embeddings": True}
_GEMMA = GROUPED | {"sliding_window": 16}
_MOE = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_HYBRID = GROUPED | {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
_HYBRID |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
_CONV = GROUPED | {"layer_types": ["conv", "full_attention"]}
_PICTURES = SIZES | {"image_size": 28, "patch_size": 14}
_GEMMA3 = {"text_config": _GEMMA | {"vocab_size": WORDS}, "vision_config": _PICTURES, "mm_tokens_per_image": 4}

STACKS = {"": "is an encoder-decoder"}
NO_KEYS = {"prefix": "has layers without keys and values"}
_READER = dict.fromkeys(("LoRA", "4 bits", "soft prompt", "prefix", "bill"), "is an encoder")
_FALCON = dict.fromkeys(("4 bits", "bill"), "has linear layers of a class of its own")
_FALCON |= {"prefix": "shares one key between"}

ENCODERS = [
    Tiny("bert", "Bert", "", BERT, SIZES),
    Tiny("bert without pooler", "Bert", "ForMaskedLM", BERT, SIZES),
    Tiny("distilbert", "DistilBert", "ForMaskedLM", BERT, _DISTIL),
    Tiny("roberta", "Roberta", "ForMaskedLM", ROBERTA, XL),
    Tiny("xlm-roberta", "XLMRoberta", "ForMaskedLM", ROBERTA, XL),
    Tiny("camembert", "Camembert", "ForMaskedLM", ROBERTA, XL),
    Tiny("electra small", "Electra", "ForPreTraining", BERT, SIZES | {"embedding_size": 16}),
    Tiny("electra base", "Electra", "ForPreTraining", BERT, SIZES | {"embedding_size": 32}),
    Tiny("mpnet", "MPNet", "", ROBERTA, XL),
    Tiny("deberta-v2, v3", "DebertaV2", "", BERT, _DEBERTA),
    Tiny("modernbert", "ModernBert", "ForMaskedLM", BERT, _MODERN, query_value=2),
    Tiny("eurobert", "EuroBert", "ForMaskedLM", LLAMA3 | {"pad": "<|pad|>", "mask": "<|mask|>"}, GROUPED),
    Tiny("nomic-bert", "NomicBert", "", BERT, SIZES),
    Tiny("mobilebert", "MobileBert", "", BERT, _MOBILE),
    Tiny("albert", "Albert", "", BERT, SIZES | {"embedding_size": 16}, refused={"": "has one block for all layers"}),
    Tiny("t5", "T5", "ForSeq2SeqLM", GEMMA, _T5, refused=STACKS),
    Tiny("bart", "Bart", "", ROBERTA, _BART, refused=STACKS),
]
DECODERS = [
    Tiny("gpt2", "GPT2", "ForCausalLM", GPT2, _GPT2, query_value=2),
    Tiny("gpt-neox", "GPTNeoX", "ForCausalLM", GPT2, SIZES, spare=20, query_value=2),
    Tiny("opt", "OPT", "ForCausalLM", OPT, SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Tiny("llama 2", "Llama", "ForCausalLM", LLAMA2, SIZES),
    Tiny("llama 3", "Llama", "ForCausalLM", LLAMA3, GROUPED),
    Tiny("mistral", "Mistral", "ForCausalLM", LLAMA2, GROUPED),
    Tiny("qwen2, qwen2.5", "Qwen2", "ForCausalLM", QWEN, _TIED, spare=20),
    Tiny("qwen3", "Qwen3", "ForCausalLM", QWEN, _TIED | {"head_dim": 24}, spare=20),
    Tiny("qwen3, sharded", "Qwen3", "ForCausalLM", QWEN, GROUPED, spare=20),
    Tiny("phi", "Phi", "ForCausalLM", GPT2, SIZES, spare=20),
    Tiny("phi3", "Phi3", "ForCausalLM", LLAMA2 | {"pad": "</s>"}, SIZES, spare=20, query_value=2),
    Tiny("gemma2", "Gemma2", "ForCausalLM", GEMMA, _GEMMA),
    Tiny("gemma3, text", "Gemma3Text", "ForCausalLM", GEMMA, _GEMMA, spare=-1),
    Tiny("smollm2", "Llama", "ForCausalLM", GPT2, _TIED),
    Tiny("smollm3", "SmolLM3", "ForCausalLM", LLAMA3, GROUPED),
    Tiny("olmo2", "Olmo2", "ForCausalLM", OLMO, SIZES, spare=20),
    Tiny("bloom", "Bloom", "ForCausalLM", GEMMA, _BLOOM, spare=20, query_value=2),
    Tiny("falcon", "Falcon", "ForCausalLM", GPT2, SIZES | {"bias": True}, spare=20, refused=_FALCON, query_value=2),
    Tiny("gpt-neo", "GPTNeo", "ForCausalLM", GPT2, _NEO),
    Tiny("qwen3.5, text", "Qwen3_5Text", "ForCausalLM", QWEN, _HYBRID, spare=20, refused=NO_KEYS, query_value=3),
    Tiny("lfm2", "Lfm2", "ForCausalLM", GEMMA, _CONV, refused=NO_KEYS, query_value=2),
    Tiny("qwen3-moe", "Qwen3Moe", "ForCausalLM", QWEN, _MOE, spare=20, refused={"": "is a mixture of experts"}),
    Tiny("gemma3", "Gemma3", "ForImageTextToText", GEMMA, _GEMMA3, refused={"": "reads more than text"}),
    Tiny("roberta as a writer", "Roberta", "ForMaskedLM", ROBERTA, XL, refused=_READER),
]

TRIALS = {
    "Encoders": (ENCODERS, ("LoRA", "4 bits", "soft prompt")),
    "Language models": (DECODERS, ("LoRA", "4 bits", "soft prompt", "prefix", "bill", "as an encoder")),
}
