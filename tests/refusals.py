"""Adapters, models and settings that cannot work, and the words of the error for each.

`test_refusals.py` tries them all; a page can be written from kind, name and said.
"""

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import tiny
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BitsAndBytesConfig,
    DistilBertConfig,
    DistilBertModel,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
)

from helpers.adapters import (
    CONFIG,
    TRAINED_ON,
    WEIGHTS,
    check_lora,
    check_prompt,
    load_adapter,
    query_value,
    save_adapter,
)
from helpers.errors import AdapterError, ModelError, ParameterError, TutorialError
from helpers.memory import memory_bill
from helpers.models import Classifier, load_classifier, load_encoder, transformer_blocks

LABELS = ["a", "b", "c"]
TARGETS = ["query", "value"]
SHAPE = {"vocab_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS, MASK = torch.arange(5, 19).reshape(2, 7), torch.ones(2, 7, dtype=torch.long)


@dataclass(frozen=True)
class Refusal:
    """`run` tries it in an empty folder; the `error` must hold all the words in `said`, in this order."""

    kind: str
    name: str
    said: tuple[str, ...]
    run: Callable[[Path], object]
    error: type[TutorialError]


@cache  # the tests and the page ask for the same
def tried(refusal: Refusal) -> str | None:
    """The message of a refusal, or None if nothing was refused; another error is raised."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            refusal.run(Path(scratch))
        except refusal.error as refused:
            return str(refused)
    return None


def some(kind: str, error: type, run: Callable, *cases: tuple) -> list[Refusal]:
    """Refusals of one kind, each given as a name, the words, and what `run` takes after the folder."""
    return [Refusal(kind, name, said, partial(run, *given), error) for name, said, *given in cases]


# ---------------------------------------------------------------- small models with an adapter


def base(seed=0, *, width=16, labels=LABELS):
    torch.manual_seed(seed)
    return Classifier(BertModel(BertConfig(hidden_size=width, **SHAPE)), labels).eval()


def in_16_bits():
    model = base()
    model.backbone.to(torch.bfloat16)
    return model


def writer(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, **SHAPE, **options)).eval()


def lora(model, **options):
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "modules_to_save": ["head"]} | options)
    check_lora(model, config)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


PROMPTS = {
    "prompt": PromptTuningConfig,
    "prefix": PrefixTuningConfig,
    "P-tuning": lambda **options: PromptEncoderConfig(**options, encoder_hidden_size=8),
}


def prompted(model, kind="prompt", seed=5):
    """A frozen model behind learned vectors, as they might be after training."""
    task_type = "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"
    model = get_peft_model(model, PROMPTS[kind](task_type=task_type, num_virtual_tokens=3))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def output(model):
    out = model(input_ids=IDS, attention_mask=MASK)
    return out.logits if "logits" in out else out.last_hidden_state


def put(model, folder, **options):
    """Load an adapter; if it is refused, the model has the same parts and answers as before."""
    names, before = [name for name, _ in model.named_parameters()], output(model)
    try:
        return load_adapter(model, folder, **options)
    except TutorialError:
        assert [name for name, _ in model.named_parameters()] == names, "the refused adapter left something behind"
        if "good" in getattr(model, "peft_config", {}):
            model.set_adapter("good")
        assert torch.equal(output(model), before)
        raise


# ---------------------------------------------------------------- what is tried


def damaged(kind, edit, attached, folder):
    """Edited weights, onto a bare model or beside a good adapter."""
    model, saved = (base(), lora(base())) if kind == "LoRA" else (writer(), prompted(writer()))
    good, bad = save_adapter(saved, folder / "good"), save_adapter(saved, folder / "bad")
    if attached:
        model = load_adapter(model, good, name="good")
    tensors = load_file(bad / WEIGHTS)
    edit(tensors)
    save_file(tensors, bad / WEIGHTS)
    put(model, bad, name="bad")


def broken(file, change, folder):
    change(save_adapter(lora(base()), folder / "adapter") / file)
    put(base(), folder / "adapter")


def configured(values, folder):
    saved = save_adapter(lora(base()), folder / "adapter")
    tiny.edit(saved / CONFIG, **values)
    put(base(), saved)


def onto(adapted, other, folder, **options):
    put(other(), save_adapter(adapted(), folder / "adapter"), **options)


def by_peft(other, values, folder, **options):
    lora(base()).save_pretrained(folder)
    tiny.edit(folder / CONFIG, **values)
    put(other(), folder, **options)


def saved(build, folder):
    try:
        save_adapter(build(), folder / "adapter")
    finally:
        assert not list(folder.iterdir()), "something was written"


def unfrozen():
    model = lora(base())
    model.base_model.model.backbone.pooler.requires_grad_(True)
    return model


def merged():
    model = lora(base())
    model.merge_adapter()
    return model


def wanted(options, folder):
    model = base()  # PEFT looks at the rank only when it builds the matrices
    check_lora(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | options))


def prompt_of(model, length, options, folder):
    check_prompt(model(), length, **options)


def renamed(folder):
    model = base()
    for block in transformer_blocks(model):
        own = block.attention.self
        own.ask, own.answer = own._modules.pop("query"), own._modules.pop("value")
    query_value(model)


def model_folder(name, change, folder):
    change(tiny.named(name).write(folder))
    load_encoder(str(folder), quiet=True)


def encoder(change, folder):
    model_folder("bert", change, folder)


def replace(file, content, folder):
    encoder(lambda found: (found / file).write_bytes(content), folder)


def move(old, new=None):
    return lambda folder: (folder / old).rename(folder / new) if new else (folder / old).unlink()


def edited(**values):
    return lambda folder: tiny.edit(folder / "config.json", **values)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def less(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def own_code(folder):
    maps = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    tiny.edit(folder / "config.json", model_type="surprise", auto_map=maps)
    (folder / "evil.py").write_text("raise SystemExit('code of a model was executed')")


def autocast(quantization, folder):
    deberta = tiny.named("deberta-v2, v3").write(folder)
    model = load_classifier(str(deberta), LABELS, quantization=BitsAndBytesConfig(**quantization))
    assert output(model).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        output(model)


def billed(options, folder):
    config = LlamaConfig(**SHAPE, hidden_size=16, max_position_embeddings=256, **options.pop("config", {}))
    memory_bill(options.pop("name", config), **({"length": 64} | options))


def slow(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>")


def without(*tokens):
    return lambda folder: tiny.edit(folder / "tokenizer_config.json", **{f"{token}_token": None for token in tokens})


def larger(folder):
    tiny.tokenizer_of(tiny.BERT, tiny.WORDS + 10).save_pretrained(folder)


FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
NAN, INFINITE = math.nan, math.inf
WEIGHTS_OF_ADAPTERS = (
    ("one tensor is missing", ("lacks 1 of 10", "lora_B"), "LoRA",
     lambda t: t.pop(next(k for k in t if "lora_B" in k))),
    ("the trained head is missing", ("lacks 2 of 10", "head included"), "LoRA",
     lambda t: [t.pop(k) for k in list(t) if "head" in k]),
    ("a tensor that fits nowhere", ("fit nowhere", "spare"), "LoRA",
     lambda t: t.update({"base_model.model.spare.weight": torch.zeros(1)})),
    ("another shape", ("has the shape", "expected"), "LoRA",
     lambda t: t.update({k: v[:2].clone() for k, v in t.items() if "lora_A" in k})),
    ("a value that is no number", ("lora_A", "not finite", "diverged"), "LoRA",
     lambda t: next(v for k, v in t.items() if "lora_A" in k)[0].fill_(NAN)),
    ("an infinite value in the head", ("head.bias", "not finite"), "LoRA",
     lambda t: t["base_model.model.head.bias"].fill_(INFINITE)),
    ("no prompt", ("lacks 1 of 1",), "prompt", lambda t: t.pop("prompt_embeddings")),
    ("a prompt with a value that is no number", ("not finite",), "prompt",
     lambda t: t["prompt_embeddings"][0].fill_(NAN)),
    ("a prompt of another shape", ("has the shape",), "prompt",
     lambda t: t.update(prompt_embeddings=torch.zeros(2, 16))),
)  # fmt: skip
BROKEN = {"cut short": (cut, "damaged", "Copy the adapter again"), "missing": (Path.unlink, "no such file")}
STAND_INS = {
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html>Sign in</html>", "a web page", "download it again"),
    "cut off": (b'{"a": 1', "cut off or damaged (7 bytes"),
    "a list": (b"[]", "cut off or damaged"),
    "a header of no JSON": (b"\x10\0\0\0\0\0\0\0{not json at all}", "cut off or damaged"),
}

REFUSALS = [
    *some("the weights of an adapter", AdapterError, damaged, *(
        (name + place, said, kind, edit, attached)
        for name, said, kind, edit in WEIGHTS_OF_ADAPTERS
        for place, attached in (("", False), (", beside a good adapter", True))
    )),
    *some("the files of an adapter", AdapterError, broken, *(
        (f"{file} is {how}", (f"{file}: {words[0]}", *words[1:]), file, change)
        for file in (CONFIG, WEIGHTS, TRAINED_ON)
        for how, (change, *words) in BROKEN.items()
    )),
    *some("the configuration of an adapter", AdapterError, configured,
        ("a kind that nobody has", ("NOPE", "expected one of LORA"), {"peft_type": "NOPE"}),
        ("IA3", ("not one of ours",), {"peft_type": "IA3"}),
        ("another task type", ("task_type 'CAUSAL_LM', here: a model of task_type None",), {"task_type": "CAUSAL_LM"}),
        ("a key of a newer PEFT", ("does not know {'new': 1}: written by PEFT", "this is"), {"new": 1}),
        ("a rank of zero", ("r=0",), {"r": 0}),
        ("PiSSA", ("moved a part of the base",), {"init_lora_weights": "pissa"}),
        ("a layer that the model lacks", ("no module 'nope'",), {"target_modules": ["query", "nope"]}),
    ),
    *some("an adapter and another base", AdapterError, onto,
        ("other weights of the same shape", ("another base of the same shape",), lambda: lora(base()),
         partial(base, 1)),
        ("another width", ("a base of", "parameters"), lambda: lora(base()), partial(base, width=32)),
        ("another type", ("float32 weights, here: bfloat16 weights.", "other_base=True"), lambda: lora(base()),
         in_16_bits),
        ("labels in another order", ("labels ['a', 'b', 'c']", "same labels in the same order"), lambda: lora(base()),
         partial(base, labels=["a", "c", "b"])),
        ("a language model", ("a model of task_type None, here: a model of task_type 'CAUSAL_LM'",),
         lambda: lora(base()), writer),
        ("a prompt, other weights", ("another base of the same shape",), lambda: prompted(base().backbone),
         lambda: base(1).backbone),
        ("a prompt, another width", ("a base of", "parameters"), lambda: prompted(base().backbone),
         lambda: base(width=32).backbone),
        ("a prompt, a language model", ("task_type 'FEATURE_EXTRACTION', here: a model of task_type 'CAUSAL_LM'",),
         lambda: prompted(base().backbone), writer),
    ),
    *some("two adapters of different kinds", AdapterError, partial(onto, name="second"),
        ("a prompt beside LoRA", ("already is of type", "LORA", "into separate models"),
         lambda: prompted(base().backbone), lambda: lora(base().backbone, modules_to_save=None)),
        ("a prompt beside a prefix", ("already is of type", "PREFIX_TUNING", "into separate models"),
         lambda: prompted(base().backbone), lambda: prompted(base().backbone, "prefix")),
    ),
    *some("an adapter that PEFT wrote", AdapterError, by_peft,
        ("without being asked for", (f"{TRAINED_ON}: no such file", "unchecked=True"), base, {}),
    ),
    *some("an adapter that PEFT wrote", AdapterError, partial(by_peft, unchecked=True),
        ("for another architecture", ("no module",), writer, {"task_type": "CAUSAL_LM"}),
    ),
    *some("an adapter that could not come back, on saving", AdapterError, saved,
        ("PiSSA", ("pissa", "moved a part of the base"), lambda: lora(base(), init_lora_weights="pissa")),
        ("IA3", ("peft_type=IA3",),
         lambda: get_peft_model(base(), IA3Config(target_modules=["key"], feedforward_modules=[]))),
        ("AdaLoRA", ("peft_type=ADALORA",),
         lambda: get_peft_model(base(), AdaLoraConfig(target_modules=TARGETS, total_step=9))),
        ("some biases", ("bias='lora_only'", "Use bias='all'"), lambda: lora(base(), bias="lora_only")),
        ("a trained part of the base", ("2 tensors of the base", "such as backbone.pooler", "modules_to_save"),
         unfrozen),
        ("merged", ("merged into the base", "unmerge_adapter"), merged),
    ),
    Refusal("an adapter that could not come back, on saving", "one of a name that is not there", ("adapters default",),
            lambda folder: save_adapter(lora(base()), folder / "adapter", name="other"), ParameterError),
    *some("the settings of LoRA", ParameterError, wanted,
        ("rank 0", ("r=0",), {"r": 0}),
        ("a rank above the matrix", ("r=17:", "query is a matrix of 16 x 16", "above 16"), {"r": 17}),
        ("a rank in quotes", ("r='8': expected a whole number",), {"r": "8"}),
        ("a rank above the matrix, in a pattern", ("r=17:", "query is a matrix of 16 x 16", "above 16"),
         {"rank_pattern": {"query": 17}}),
        ("rank 0 in a pattern", ("rank_pattern['query']=0: expected a whole number",), {"rank_pattern": {"query": 0}}),
        ("a pattern that fits nowhere", ("rank_pattern: this model has no module 'nope'",),
         {"rank_pattern": {"nope": 4}}),
        ("alpha in quotes, in a pattern", ("alpha_pattern['layer.1.*query']='8': expected a number above 0",),
         {"alpha_pattern": {"layer.1.*query": "8"}}),
        ("alpha 0", ("lora_alpha=0", "nothing would be learned"), {"lora_alpha": 0}),
        ("alpha in quotes", ("lora_alpha='16': expected a number",), {"lora_alpha": "16"}),
        ("dropout of everything", ("lora_dropout=1.0: expected a number from 0 to below 1",), {"lora_dropout": 1.0}),
        ("dropout in quotes", ("lora_dropout='0.1'",), {"lora_dropout": "0.1"}),
        ("a misspelled layer", ("no module 'qeury'", "dense, head, key, query, value"),
         {"target_modules": ["query", "qeury"]}),
        ("an expression that fits nowhere", (r"no module '.*\\.nope'",), {"target_modules": r".*\.nope"}),
        ("a module to save that is not there", ("no module 'classifier'",), {"modules_to_save": ["classifier"]}),
        *((f"task type {name}", (f"task_type='{name}': this Classifier needs None",), {"task_type": name})
          for name in ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM")),
    ),
    Refusal("the settings of LoRA", "queries and values of unknown names", ("type 'bert': no linear layer",
            "target_modules", "answer, ask, dense, key"), renamed, ModelError),
    *some("the settings of a prompt", ParameterError, prompt_of,
        ("length 0", ("length=0: expected a whole number from 1",), base, 0, {}),
        ("length 2.5", ("length=2.5",), base, 2.5, {}),
        ("length True", ("length=True",), base, True, {}),
        ("longer with the text than the model's positions", ("that is 513", "bert model has 512 positions",
         "cut the texts to 112"), base, 400, {"longest_text": 113}),
        ("positions that count from two", ("roberta model has 512 positions",),
         partial(RobertaConfig, max_position_embeddings=514), 13, {"longest_text": 500}),
        ("words to start from, more than the prompt", ("have 6 tokens", "at least 6, or fewer words"), base, 5,
         {"start_tokens": 6}),
        ("a prefix for a model without past keys", ("distilbert model takes no past keys", "soft prompt"),
         lambda: DistilBertModel(DistilBertConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2)), 3, {"prefix": True}),
        ("a prefix for layers without keys", ("layers without keys and values (conv)",),
         partial(Lfm2Config, num_hidden_layers=2, layer_types=["conv", "full_attention"]), 3, {"prefix": True}),
    ),
    *some("the files of a model", ModelError, replace, *(
        (f"{file} is {name}", (f"{file}: {words[0]}", *words[1:]), file, content)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        for name, (content, *words) in STAND_INS.items()
    )),
    *some("the folder of a model", ModelError, encoder,
        ("is not there", ("there is no such folder", "cannot be a Hub id"), shutil.rmtree),
        ("without config.json", ("not the folder of a model", "no config.json"), move("config.json")),
        ("one of two files of weights", ("1 of 2 files",), move("model.safetensors", "model-1-of-2.safetensors")),
        ("without a tokenizer", ("no tokenizer.json or vocab",), move("tokenizer.json")),
        ("an empty tokenizer", ("no readable tokenizer",), lambda f: (f / "tokenizer.json").write_text("{}")),
        ("a number in quotes", ("config.json",), edited(hidden_size="32")),
        ("heads that do not divide the width", ("config.json",), edited(num_attention_heads=3)),
        ("a configuration of another width", ("do not fit",), edited(hidden_size=64)),
        ("the end of the weights is missing", ("cut off or damaged", "not fully covered"), short),
        ("one tensor is missing", ("the weights lack 1 tensors", "encoder.layer.1"), less),
        ("code of its own", ("config.json",), own_code),
    ),
    *some("the folder of a model", ModelError, model_folder,
        ("a pickle and no safetensors", ("is a pickle, which can run code",), "roberta",
         move("model.safetensors", "pytorch_model.bin")),
        ("no tokenizer.json, only a SentencePiece file", ("spm.model alone is not read here",), "camembert", slow),
        *((f"weights packed by {method.upper()}", ("Give the original model",), "llama 2",
           edited(quantization_config={"quant_method": method, "bits": 4, "group_size": 128}))
          for method in ("gptq", "awq")),
        ("no padding, end or other special token", ("no other special token",), "llama 2",
         without("bos", "eos", "unk")),
        ("a tokenizer larger than the table", ("its largest token id is 309, the model has 300",), "bert", larger),
    ),
    *some("loading a model", ParameterError, lambda call, _: call(),
        ("a classifier of one label", ("at least two",), partial(load_classifier, labels=["only"])),
        ("neither 4 nor 8 bits", ("neither load_in_4bit=True nor load_in_8bit=True",),
         partial(load_encoder, quantization=BitsAndBytesConfig())),
        ("an unknown type of 4 bits", ("'nf3': expected 'nf4' or 'fp4'",),
         partial(load_encoder, quantization=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf3"))),
        ("random weights in 4 bits", ("choose one",),
         partial(load_encoder, quantization=BitsAndBytesConfig(**FOUR_BITS), random_weights=True)),
    ),
    *some("DeBERTa under 16 bits", ParameterError, autocast, *(
        (f"over {bits} bits", ("bfloat16: over quantised layers", "deberta-v2", "precision='float32'"), quantization)
        for bits, quantization in ((4, FOUR_BITS), (8, {"load_in_8bit": True}))
    )),
    *some("the memory bill", ParameterError, lambda options, _: billed(dict(options), _),
        ("an unknown method", ("method='lorax': expected one of full, lora, qlora",), {"method": "lorax"}),
        ("an unknown type of 4 bits", ("quantization='nf3'",), {"quantization": "nf3"}),
        ("an unknown precision", ("precision='int4'",), {"precision": "int4"}),
        ("an unknown optimiser", ("optimizer='sgd'",), {"optimizer": "sgd"}),
        ("no text", ("batch=0: expected a whole number from 1",), {"batch": 0}),
        ("rank 0", ("rank=0",), {"rank": 0}),
        ("beyond the model's positions", ("length=257: this model has 256 positions",), {"length": 257}),
        ("a layer that the model lacks", ("no module 'q_prog'",), {"targets": ["q_prog"]}),
        ("an unknown sharding", ("sharding='zero3': expected one of none, full",), {"sharding": "zero3"}),
        ("no process", ("processes=0: expected a whole number from 1",), {"processes": 0}),
        ("one process that shares", ("nobody to share with", "sharding='none'"), {"sharding": "full"}),
        ("8-bit state of shared weights", ("'adamw_8bit'", "Use 'adamw'"),
         {"processes": 2, "sharding": "full", "optimizer": "adamw_8bit"}),
    ),
    *some("the memory bill", ModelError, lambda options, _: billed(dict(options), _),
        ("an unknown model", ("no config.json there",), {"name": "Llama-9"}),
        ("weights that are quantised already", ("quantised already (gptq)",),
         {"config": {"quantization_config": {"quant_method": "gptq"}}}),
    ),
]  # fmt: skip
