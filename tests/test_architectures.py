"""Each architecture through what the notebooks do, or refused by name; `docs/architectures.md` is this table."""

import copy
import gc
import logging
import re
from functools import partial

import pytest
import tiny
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)

from helpers import (
    choose_machine,
    fingerprint,
    fit,
    generate,
    load_adapter,
    load_classifier,
    load_encoder,
    load_language_model,
    memory_bill,
    save_adapter,
    transformer_blocks,
)
from helpers.adapters import check_lora, check_prompt, prompt_shape, query_value
from helpers.errors import TutorialError
from helpers.quantization import quantized_layers

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MACHINE = choose_machine(device="cpu", precision="float32")
LABELS = ["ask", "complain"]
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
# Three steps: the first has a rate of zero, the second moves the head, and the third what lies below it.
TRAINING = {"steps": 3, "rate": 1e-2, "batch": 3, "machine": MACHINE}


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Trainer collects garbage each time: most of a second, unless what was imported is left out."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}
    return lambda model: made.setdefault(model.name, model.write(tmp_path_factory.mktemp("model")))


def rows(tokenizer, *, writes):
    """The texts; their answers are the texts themselves, or labels."""
    ids = [tokenizer(text, truncation=True, max_length=48)["input_ids"] for text in tiny.TEXTS]
    answers = ids if writes else [number % 2 for number in range(len(ids))]
    return [{"input_ids": i, "attention_mask": [1] * len(i), "labels": answer} for i, answer in zip(ids, answers)]


@torch.no_grad()
def difference(one, other, batch):
    """The largest, of logits or of hidden states at the places of the text."""
    found = [
        model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]) for model in (one, other)
    ]
    found = [out.logits if "logits" in out else out.last_hidden_state for out in found]
    if found[0].ndim == 3:
        found = [out[:, -batch["input_ids"].shape[1] :] for out in found]
    return (found[0] - found[1]).abs().max().item()


def comes_back(model, fresh, folder, batch):
    """Saved and loaded onto a fresh base without a difference, all that could be trained is, and merging fits."""
    asleep = [name for name, p in model.named_parameters() if "lora_B" in name and not p.any()]
    assert not asleep, f"not trained: {asleep}"
    assert difference(model, fresh(), batch) > 1e-5, "nothing was learned"
    loaded = load_adapter(fresh(), save_adapter(model, folder / "adapter"))
    assert difference(model, loaded, batch) == 0.0
    if hasattr(loaded, "merge_and_unload") and not any(quantized_layers(loaded)):
        assert difference(model, copy.deepcopy(loaded).merge_and_unload(), batch) < 1e-4


# ---------------------------------------------------------------- what the notebooks do


def classify(folder, quantization=None):
    """Notebooks 1 to 3: the encoder, its blocks, a classifier, LoRA under a trained head."""

    def fresh():
        return load_classifier(str(folder), LABELS, quantization=quantization)

    backbone, tokenizer = load_encoder(str(folder), quantization=quantization, quiet=True)
    model = fresh()
    assert len(transformer_blocks(backbone)) == 2
    assert fingerprint(model.backbone) == fingerprint(backbone)
    linear = [n for n, m in model.backbone.named_modules() if isinstance(m, nn.Linear) and "pooler" not in n]
    assert quantization is None or len(list(quantized_layers(model))) >= len(linear)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=linear, modules_to_save=["head"])
    check_lora(model, config)
    model = get_peft_model(model, config)
    some, pad = rows(tokenizer, writes=False), DataCollatorWithPadding(tokenizer)
    fit(model, some, pad, **TRAINING)
    comes_back(model, fresh, folder, pad(some))


def write(folder, quantization=None):
    """Notebooks 2 and 3: the language model, LoRA in all linear layers, what it writes."""

    def fresh():
        return load_language_model(str(folder), quantization=quantization, quiet=True)[0]

    model, tokenizer = load_language_model(str(folder), quantization=quantization, quiet=True)
    assert len(transformer_blocks(model)) == 2 and fingerprint(model) == fingerprint(fresh())
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    check_lora(model, config)
    learns(get_peft_model(model, config), tokenizer, fresh, folder)


def learns(model, tokenizer, fresh, folder):
    some, pad = rows(tokenizer, writes=True), DataCollatorForSeq2Seq(tokenizer)
    fit(model, some, pad, **TRAINING)
    assert len(generate(model, tokenizer, tiny.TEXTS[:3], machine=MACHINE, new_tokens=3)) == 3
    comes_back(model, fresh, folder, pad(some))


def prompt_encoder(folder):
    """Notebook 4: a soft prompt before an encoder."""

    def fresh():
        return load_encoder(str(folder), quiet=True)[0]

    model, tokenizer = load_encoder(str(folder), quiet=True)
    check_prompt(model, 5, longest_text=48)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5, **prompt_shape(model))
    model = get_peft_model(model, config)
    batch = DataCollatorWithPadding(tokenizer)(rows(tokenizer, writes=False))
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    hidden.square().mul(torch.arange(hidden.shape[-1])).sum().backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.any()
    comes_back(model, fresh, folder, batch)


def prompt_writer(folder, kind):
    """Notebook 4: a soft prompt, or a prefix, before a language model."""

    def fresh():
        return load_language_model(str(folder), quiet=True)[0]

    model, tokenizer = load_language_model(str(folder), quiet=True)
    prefix = kind is PrefixTuningConfig
    check_prompt(model, 5, longest_text=48, prefix=prefix)
    shape = {} if prefix else prompt_shape(model)
    model = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=5, **shape))
    learns(model, tokenizer, fresh, folder)


def bill(folder):
    """Notebook 3: to the byte the weights that transformers loads; a row for padding is not in it."""
    for method, quantization in (("lora", None), ("qlora", FOUR_BITS)):
        found = memory_bill(folder, method=method, batch=2, length=32, rank=4, precision="float32")
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization)
        if quantization is not None:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert found.weights == sum(p.nbytes for p in model.parameters())
        assert found.activations > 0 and found.adapters > 0


def here(model):
    """Older versions of transformers lack some."""
    return pytest.mark.skipif(not hasattr(transformers, f"{model.config}Config"), reason=f"no {model.config} here")


RUNS = {
    "Encoders": [classify, partial(classify, quantization=FOUR_BITS), prompt_encoder],
    "Language models": [
        write,
        partial(write, quantization=FOUR_BITS),
        partial(prompt_writer, kind=PromptTuningConfig),
        partial(prompt_writer, kind=PrefixTuningConfig),
        bill,
        classify,
    ],
}
CASES = [
    pytest.param(model, trial, run, id=f"{model.name}-{trial}", marks=here(model))
    for title, (models, trials) in tiny.TRIALS.items()
    for model in models
    for trial, run in zip(trials, RUNS[title], strict=True)
]


@pytest.mark.parametrize(("model", "trial", "run"), CASES)
def test_it_works_or_is_refused_by_name(model, trial, run, folder_of):
    reason = model.why_not(trial)
    if reason is None:
        run(folder_of(model))
    else:
        with pytest.raises(TutorialError, match=re.escape(reason)) as refused:
            run(folder_of(model))
        assert re.search(r"model of type '\w+'|a \w+ model", str(refused.value)) and "Use " in str(refused.value)


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, id=m.name, marks=here(m)) for m in tiny.ENCODERS + tiny.DECODERS if "" not in m.refused],
)
def test_queries_and_values_are_found_by_name(model, folder_of):
    """Two layers a block, or one that makes both; PEFT adapts these and no other."""
    loaded = load_classifier(str(folder_of(model)), LABELS)
    found = query_value(loaded)
    assert len(found) == model.query_value
    assert sorted(get_peft_model(loaded, LoraConfig(target_modules=found)).targeted_module_names) == sorted(found)


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name, marks=here(m)) for m in tiny.DECODERS if not m.refused])
def test_texts_in_one_row_are_read_one_by_one(model, folder_of):
    """Attention computed text by text is that over the whole row with its mask, and that of each text alone."""
    loaded, tokenizer = load_language_model(str(folder_of(model)), quiet=True)
    together = DataCollatorWithFlattening()(rows(tokenizer, writes=True))
    found = loaded(**together, use_cache=False).logits
    if loaded.config._attn_implementation == "text_by_text":
        loaded.set_attn_implementation("sdpa")
        assert torch.allclose(found, loaded(**together, use_cache=False).logits, atol=1e-5)
    if model.name in ("opt", "bloom", "qwen3.5, text"):  # other positions, or a state along the row: notebook 2 warns
        return
    alone = [loaded(torch.tensor([row["input_ids"]])).logits for row in rows(tokenizer, writes=True)]
    assert torch.allclose(found, torch.cat(alone, dim=1), atol=1e-4)
