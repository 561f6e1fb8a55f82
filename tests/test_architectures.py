"""Each architecture through what the notebooks do with it, or refused by name: `docs/architectures.md` is this table."""

import copy
import logging

import pytest
import tiny
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DataCollatorForSeq2Seq, DataCollatorWithPadding

from helpers import choose_machine, fit, generate, load_adapter, load_classifier, load_encoder, load_language_model
from helpers import memory_bill, save_adapter, transformer_blocks
from helpers.adapters import check_lora, check_prompt, prompt_shape
from helpers.measuring import count_parameters, fingerprint
from helpers.quantization import quantized_layers

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MACHINE = choose_machine(device="cpu", precision="float32")
LABELS = ["ask", "complain"]
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
TRAINING = {"steps": 3, "rate": 1e-2, "batch": 3, "machine": MACHINE}


def rows(tokenizer, *, answers):
    """The texts, with a label each or, for a language model, with themselves as what is to be written."""
    ids = [tokenizer(text, truncation=True, max_length=48)["input_ids"] for text in tiny.TEXTS]
    labels = ids if answers else [number % 2 for number in range(len(ids))]
    return [{"input_ids": i, "attention_mask": [1] * len(i), "labels": label} for i, label in zip(ids, labels)]


@torch.no_grad()
def output(model, batch):
    found = model.eval()(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    found = found.logits if "logits" in found else found.last_hidden_state
    return (found if found.ndim == 2 else found[:, -batch["input_ids"].shape[1] :]).float()  # without a prompt's places


def difference(one, other, batch):
    return (output(one, batch) - output(other, batch)).abs().max().item()


def linear_layers(model):
    return [name for name, module in model.named_modules() if type(module) is nn.Linear or "Linear4bit" in str(type(module)) or type(module).__name__ in ("Conv1D", "FalconLinear")]


def classifier(folder, quantization=None):
    """Load, classify, adapt, train, save, load onto a fresh base, and merge."""
    backbone, tokenizer = load_encoder(str(folder), quantization=quantization, quiet=True)
    assert len(transformer_blocks(backbone)) == 2
    some = rows(tokenizer, answers=False)
    collate = DataCollatorWithPadding(tokenizer)
    fresh = lambda: load_classifier(str(folder), LABELS, quantization=quantization)
    model = fresh()
    before = fingerprint(model)
    assert fingerprint(fresh()) == before, "not the same twice"
    assert torch.isfinite(output(model, collate(some))).all()
    targets = [name for name in linear_layers(model.backbone) if "pooler" not in name]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=["head"])
    check_lora(model, config)
    if quantization is not None:
        assert len(dict(quantized_layers(model))) >= len(targets)
    model = get_peft_model(model.requires_grad_(False), config)
    fit(model, some, collate, **TRAINING)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    moved = [n for n, p in model.named_parameters() if "lora_B" in n and p.any()]
    finish(model, fresh, folder, collate(some))
    assert len(moved) == len(targets), f"only {len(moved)} of {len(targets)} adapters learned"


def finish(model, fresh, folder, batch, merge=True):
    assert difference(model, fresh(), batch) > 1e-4, "nothing was learned"
    saved = save_adapter(model, folder / "adapter")
    loaded = load_adapter(fresh(), saved)
    assert difference(model, loaded, batch) == 0.0
    if merge and not any(True for _ in quantized_layers(model)):
        merged = copy.deepcopy(loaded).merge_and_unload()
        assert difference(model, merged, batch) < 1e-4


def classifier_4(folder):
    classifier(folder, FOUR_BITS)


def encoder_prompt(folder):
    fresh = lambda: load_encoder(str(folder), quiet=True)[0]
    model, tokenizer = load_encoder(str(folder), quiet=True)
    check_prompt(model, 5, longest_text=48)
    model = get_peft_model(model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5, **prompt_shape(model)))
    batch = DataCollatorWithPadding(tokenizer)(rows(tokenizer, answers=False)).to("cpu")
    found = model.train()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    (found * torch.randn_like(found)).sum().backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.any()
    saved = save_adapter(model, folder / "adapter")
    assert difference(model, load_adapter(fresh(), saved), batch) == 0.0


def writer(folder, quantization=None):
    fresh = lambda: load_language_model(str(folder), quantization=quantization, quiet=True)[0]
    model, tokenizer = load_language_model(str(folder), quantization=quantization, quiet=True)
    assert fingerprint(fresh()) == fingerprint(model), "not the same twice"
    assert len(transformer_blocks(model)) == 2
    some = rows(tokenizer, answers=True)
    pad = DataCollatorForSeq2Seq(tokenizer)
    if quantization is not None:
        assert len(dict(quantized_layers(model))) > 4
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    check_lora(model, config)
    model = get_peft_model(model.requires_grad_(False), config)
    fit(model, some, pad, **TRAINING)
    replies = generate(model, tokenizer, tiny.TEXTS[:3], machine=MACHINE, new_tokens=4)
    assert len(replies) == 3
    finish(model, fresh, folder, pad(some))
    moved = [n for n, p in model.named_parameters() if "lora_B" in n and p.any()]
    every = [n for n, p in model.named_parameters() if "lora_B" in n]
    assert len(moved) == len(every), f"only {len(moved)} of {len(every)} adapters learned"


def writer_4(folder):
    writer(folder, FOUR_BITS)


def writer_prompt(folder, kind=PromptTuningConfig):
    fresh = lambda: load_language_model(str(folder), quiet=True)[0]
    model, tokenizer = load_language_model(str(folder), quiet=True)
    check_prompt(model, 5, longest_text=48, prefix=kind is PrefixTuningConfig)
    model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=5))
    some, pad = rows(tokenizer, answers=True), DataCollatorForSeq2Seq(tokenizer)
    fit(model, some, pad, **TRAINING)
    replies = generate(model, tokenizer, tiny.TEXTS[:3], machine=MACHINE, new_tokens=4)
    finish(model, fresh, folder, pad(some), merge=False)


def writer_prefix(folder):
    writer_prompt(folder, PrefixTuningConfig)


def bill(folder):
    """To the byte of what is loaded; the activations are finite."""
    for method, quantization in (("full", None), ("lora", None), ("qlora", FOUR_BITS)):
        found = memory_bill(folder, method=method, batch=2, length=32, rank=4, precision="float32")
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)  # no row for padding
        if quantization:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        extra = 0
        weights = sum(p.nbytes for p in model.parameters())
        assert found.weights - weights == 0, (method, found.weights, weights)
        assert found.activations > 0


def as_encoder(folder):
    classifier(folder)


KINDS = {
    "encoder": (tiny.ENCODERS, [classifier, classifier_4, encoder_prompt]),
    "decoder": (tiny.DECODERS, [writer, writer_4, writer_prompt, writer_prefix, bill, as_encoder]),
}
