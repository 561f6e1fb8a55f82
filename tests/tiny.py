"""Tiny models with random weights in the Hub's layout, one line an architecture: no network, a second each."""

import json
from dataclasses import dataclass
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
    """An architecture: its configuration, the class whose checkpoint the Hub has, the tokenizer, spare rows."""

    name: str
    config: str
    kind: str
    tokens: dict
    sizes: dict
    spare: int = 0  # rows of the table beyond the vocabulary
    note: str = ""

    def write(self, folder: Path) -> Path:
        """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
        tokenizer = _tokenizer(self.tokens)
        tokenizer.save_pretrained(folder)
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        sizes = {"vocab_size": len(tokenizer) + self.spare, **ids, **self.sizes}
        config = getattr(transformers, f"{self.config}Config")(**sizes)
        torch.manual_seed(0)
        model = getattr(transformers, f"AutoModel{self.kind}").from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide a bias that is lost or rounded
                parameter.data.normal_(std=0.02)
        model.save_pretrained(folder, max_shard_size="60KB" if "shard" in self.name else "5GB")
        return folder


def _tokenizer(tokens: dict) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=list(dict.fromkeys(tokens.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=128, **{f"{kind}_token": token for kind, token in tokens.items()}
    )


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}))


_DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
_DEBERTA = SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
_DEBERTA |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
_MODERN = SIZES | {"global_attn_every_n_layers": 2, "local_attention": 16}
_MOE = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128}
_MOBILE = SIZES | {"num_attention_heads": 2, "embedding_size": 16, "intra_bottleneck_size": 16}
_HYBRID = GROUPED | {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
_HYBRID |= {"linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
_GEMMA3 = GROUPED | {"vocab_size": WORDS, "sliding_window": 16}

ENCODERS = [
    Tiny("bert", "Bert", "", BERT, SIZES),
    Tiny("bert, no pooler", "Bert", "ForMaskedLM", BERT, SIZES),
    Tiny("distilbert", "DistilBert", "ForMaskedLM", BERT, _DISTIL),
    Tiny("roberta", "Roberta", "ForMaskedLM", ROBERTA, XL),
    Tiny("xlm-roberta", "XLMRoberta", "ForMaskedLM", ROBERTA, XL),
    Tiny("camembert", "Camembert", "ForMaskedLM", ROBERTA, XL),
    Tiny("electra, small", "Electra", "ForPreTraining", BERT, SIZES | {"embedding_size": 16}),
    Tiny("electra, base", "Electra", "ForPreTraining", BERT, SIZES | {"embedding_size": 32}),
    Tiny("mpnet", "MPNet", "", ROBERTA, XL),
    Tiny("deberta-v2, v3", "DebertaV2", "", BERT, _DEBERTA),
    Tiny("modernbert", "ModernBert", "ForMaskedLM", BERT, _MODERN),
    Tiny("eurobert", "EuroBert", "ForMaskedLM", LLAMA3 | {"pad": "<|pad|>"}, GROUPED),
    Tiny("nomic-bert", "NomicBert", "", BERT, SIZES),
    Tiny("mobilebert", "MobileBert", "", BERT, _MOBILE),
    Tiny("albert", "Albert", "", BERT, SIZES | {"embedding_size": 16}),
    Tiny("t5", "T5", "ForSeq2SeqLM", GEMMA, {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16}),
    Tiny("bart", "Bart", "", ROBERTA, _BART),
]
DECODERS = [
    Tiny("gpt2", "GPT2", "ForCausalLM", GPT2, _GPT2),
    Tiny("gpt-neox", "GPTNeoX", "ForCausalLM", GPT2, SIZES, spare=20),
    Tiny("opt", "OPT", "ForCausalLM", OPT, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    Tiny("llama 2", "Llama", "ForCausalLM", LLAMA2, SIZES),
    Tiny("llama 3", "Llama", "ForCausalLM", LLAMA3, GROUPED),
    Tiny("mistral", "Mistral", "ForCausalLM", LLAMA2, GROUPED),
    Tiny("qwen2, qwen2.5", "Qwen2", "ForCausalLM", QWEN, GROUPED | {"tie_word_embeddings": True}, spare=20),
    Tiny("qwen3", "Qwen3", "ForCausalLM", QWEN, GROUPED | {"tie_word_embeddings": True, "head_dim": 24}, spare=20),
    Tiny("qwen3, sharded", "Qwen3", "ForCausalLM", QWEN, GROUPED, spare=20),
    Tiny("phi", "Phi", "ForCausalLM", GPT2, SIZES, spare=20),
    Tiny("phi3", "Phi3", "ForCausalLM", LLAMA2 | {"pad": "</s>"}, SIZES, spare=20),
    Tiny("gemma2", "Gemma2", "ForCausalLM", GEMMA, GROUPED | {"sliding_window": 16}),
    Tiny("gemma3, text", "Gemma3Text", "ForCausalLM", GEMMA, GROUPED | {"sliding_window": 16}),
    Tiny("smollm2", "Llama", "ForCausalLM", GPT2, GROUPED | {"tie_word_embeddings": True}),
    Tiny("smollm3", "SmolLM3", "ForCausalLM", LLAMA3, GROUPED),
    Tiny("olmo2", "Olmo2", "ForCausalLM", OLMO, SIZES, spare=20),
    Tiny("bloom", "Bloom", "ForCausalLM", GEMMA, {"hidden_size": 32, "n_layer": 2, "n_head": 2}, spare=20),
    Tiny("falcon", "Falcon", "ForCausalLM", GPT2, SIZES | {"bias": True, "parallel_attn": True}, spare=20),
    Tiny("gpt-neo", "GPTNeo", "ForCausalLM", GPT2, {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128}),
    Tiny("qwen3-moe", "Qwen3Moe", "ForCausalLM", QWEN, _MOE, spare=20),
    Tiny("qwen3.5", "Qwen3_5Text", "ForCausalLM", QWEN, _HYBRID, spare=20),
    Tiny("lfm2", "Lfm2", "ForCausalLM", GEMMA, GROUPED | {"layer_types": ["conv", "full_attention"]}),
    Tiny("gemma3, images too", "Gemma3", "ForImageTextToText", GEMMA, {"text_config": _GEMMA3, "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4}),
]
