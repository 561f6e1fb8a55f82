"""Adapters: saved whole, loaded only where they belong; LoRA settings that cannot work are refused by name."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    Trainer,
    TrainingArguments,
)

from helpers import (
    AdapterError,
    Classifier,
    LossWatch,
    ParameterError,
    check_lora,
    check_prompt,
    count_parameters,
    grade_replies,
    group_by_length,
    load_adapter,
    load_classifier,
    load_pairs,
    save_adapter,
    training_memory,
)
from helpers.adapters import base_fingerprint

LABELS = ["a", "b", "c"]
TARGETS = ["query", "value"]
IDS, MASK = torch.arange(5, 19).reshape(2, 7), torch.ones(2, 7, dtype=torch.long)


def base(seed=0, *, width=16, labels=LABELS):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return Classifier(BertModel(config), labels).eval()


def writer():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def lora(model, **options):
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "modules_to_save": ["head"]} | options)
    check_lora(model, config)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model.eval()


@torch.no_grad()
def output(model):
    out = model(input_ids=IDS, attention_mask=MASK)
    return out.logits if "logits" in out else out.last_hidden_state


@pytest.fixture
def trained():
    return lora(base())


@pytest.fixture
def folder(trained, tmp_path):
    return save_adapter(trained, tmp_path / "adapter")


def change(folder, edit):
    """Apply `edit` to the tensors of a saved adapter."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


# ---------------------------------------------------------------- saved and loaded


def test_a_fresh_base_with_the_adapter_answers_the_same(trained, folder):
    assert not torch.equal(output(base()), output(trained))
    loaded = load_adapter(base(), folder)
    assert torch.equal(output(loaded), output(trained))
    assert not loaded.training and count_parameters(loaded).trainable == 0


def test_the_head_travels_along_and_the_files_are_complete(folder):
    assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "trained_on.json"}
    assert {"base_model.model.head.weight", "base_model.model.head.bias"} <= set(
        load_file(folder / "adapter_model.safetensors")
    )
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"], "a draft was left behind"


def test_saving_again_replaces_the_folder(trained, folder):
    (folder / "old.txt").write_text("left over")
    save_adapter(trained, folder)
    assert not (folder / "old.txt").exists()


def test_two_adapters_on_one_base_are_switched(trained, folder, tmp_path):
    torch.manual_seed(1)
    other = lora(base(), r=2, target_modules=["query", "key", "intermediate.dense"])
    both = load_adapter(load_adapter(base(), folder, name="one"), save_adapter(other, tmp_path / "b"), name="two")
    assert torch.equal(output(both), output(other))
    both.set_adapter("one")
    assert torch.equal(output(both), output(trained))
    with pytest.raises(ParameterError, match=r"'one'.*attached already"):
        load_adapter(both, folder, name="one")
    again = save_adapter(both, tmp_path / "again", name="two")
    assert torch.equal(output(load_adapter(base(), again)), output(other))


def test_the_fingerprint_of_the_base_does_not_see_the_adapter(trained):
    assert base_fingerprint(trained, without=["head"]) == base_fingerprint(base(), without=["head"])
    assert base_fingerprint(trained, without=["head"]) != base_fingerprint(base(1), without=["head"])


def test_a_language_model_works_as_well(tmp_path):
    model = lora(writer(), target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=None)
    loaded = load_adapter(writer(), save_adapter(model, tmp_path / "adapter"))
    assert torch.equal(output(loaded), output(model))


# ---------------------------------------------------------------- refused


def test_another_base_is_refused_also_one_of_the_same_shape(folder):
    for model, said in ((base(1), "another base of the same shape"), (base(width=32), "a base of .* parameters")):
        before = output(model)
        with pytest.raises(AdapterError, match=said):
            load_adapter(model, folder)
        assert torch.equal(output(model), before)
    with pytest.raises(AdapterError, match="float32 weights, these are bfloat16"):
        load_adapter(base().to(torch.bfloat16), folder)


def test_other_labels_are_refused(folder):
    with pytest.raises(AdapterError, match=r"for the labels \['a', 'b', 'c'\].*same labels in the same order"):
        load_adapter(base(labels=["a", "c", "b"]), folder)


FAULTS = {
    "missing": (lambda t: t.pop(next(k for k in t if "lora_B" in k)), "lacks 1 of 10 tensors.*lora_B"),
    "no head": (lambda t: [t.pop(k) for k in list(t) if "head" in k], "lacks 2 of 10 tensors.*head included"),
    "extra": (lambda t: t.update({"base_model.model.spare.lora_A.weight": torch.zeros(1)}), "fit nowhere.*spare"),
    "shape": (lambda t: t.update({k: v[:2].clone() for k, v in t.items() if "lora_A" in k}), "has the shape"),
    "nan": (lambda t: next(v for k, v in t.items() if "lora_A" in k)[0].fill_(math.nan), "not finite.*diverged"),
    "infinite": (lambda t: t["base_model.model.head.bias"].fill_(math.inf), "head.bias holds values that are not"),
}


def check_refused_without_a_trace(folder, spare, model, edit, said, attached):
    """A damaged adapter is refused, alone or beside a good one, and the model answers as before."""
    if attached:
        shutil.copytree(folder, spare)
        model = load_adapter(model, spare, name="good")
    names, before = [name for name, _ in model.named_parameters()], output(model)
    change(folder, edit)
    with pytest.raises(AdapterError, match=said):
        load_adapter(model, folder, name="bad")
    assert [name for name, _ in model.named_parameters()] == names
    if attached:
        model.set_adapter("good")
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("attached", [False, True], ids=["first", "second"])
def test_damaged_weights_are_refused_and_the_model_stays_what_it_was(folder, tmp_path, fault, attached):
    check_refused_without_a_trace(folder, tmp_path / "good", base(), *FAULTS[fault], attached)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "trained_on.json"])
def test_missing_and_truncated_files_are_refused_by_name(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=rf"{file}.*Copy the adapter again"):
        load_adapter(base(), folder)
    (folder / file).unlink()
    with pytest.raises(AdapterError, match=rf"{file}: no such file"):
        load_adapter(base(), folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("peft_type", "NOPE", "NOPE"),
        ("peft_type", "IA3", "expected LORA|damaged"),
        ("task_type", "CAUSAL_LM", "task_type is 'CAUSAL_LM', this Classifier needs None"),
        ("unknown_key", 1, "damaged"),
        ("r", 0, "r=0"),
        ("target_modules", ["query", "nope"], "no module 'nope'"),
    ],
)
def test_a_wrong_configuration_is_refused(folder, key, value, said):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(AdapterError, match=said):
        load_adapter(base(), folder)


def test_an_adapter_of_a_classifier_does_not_fit_a_language_model(folder):
    with pytest.raises(AdapterError, match="task_type is None, this LlamaForCausalLM needs 'CAUSAL_LM'"):
        load_adapter(writer(), folder)


def test_an_adapter_that_changed_its_base_is_not_saved(tmp_path):
    with pytest.raises(AdapterError, match=r"pissa.*moved a part of the base"):
        save_adapter(lora(base(), init_lora_weights="pissa"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_unknown_name_is_not_saved(trained, tmp_path):
    with pytest.raises(ParameterError, match="adapters default"):
        save_adapter(trained, tmp_path / "adapter", name="other")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r=0"),
        ({"r": -1}, "r=-1"),
        ({"r": 17}, r"r=17: .*query is a matrix of 16 x 16.*above 16"),
        ({"lora_alpha": 0}, "lora_alpha=0.*nothing would be learned"),
        ({"lora_alpha": -8}, "lora_alpha=-8"),
        ({"target_modules": ["query", "qeury"]}, "no module 'qeury'.*dense, head, key, query, value"),
        ({"target_modules": r".*\.nope"}, "fits no module"),
        ({"modules_to_save": ["classifier"]}, "no module 'classifier'"),
        ({"task_type": "CAUSAL_LM"}, "task_type='CAUSAL_LM': this Classifier needs None"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ParameterError, match=said):
        model = base()
        # PEFT looks at the rank only when it builds the matrices.
        check_lora(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | options))


def test_settings_that_work_pass():
    check_lora(base(), LoraConfig(r=16, lora_alpha=1, target_modules=TARGETS, modules_to_save=["head"]))
    check_lora(base(), LoraConfig(r=3, target_modules=r".*layer\.1\..*query"))
    with pytest.raises(ParameterError, match="at least two"):
        load_classifier(labels=["only"])


# ---------------------------------------------------------------- prompts


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


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("build", [writer, lambda: base().backbone], ids=["language model", "encoder"])
def test_a_prompt_answers_the_same_in_a_fresh_model(tmp_path, build, kind):
    model = prompted(build(), kind)
    loaded = load_adapter(build(), save_adapter(model, tmp_path / "prompt"))
    assert torch.allclose(output(loaded), output(model), atol=1e-6)
    assert not torch.allclose(output(prompted(build(), kind, seed=6)), output(model), atol=1e-3)
    assert base_fingerprint(model) == base_fingerprint(build()) == base_fingerprint(loaded)
    shipped = load_file(tmp_path / "prompt" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in shipped.items()} == {
        "prompt_embeddings": (3, 16 * 2 * 2 if kind == "prefix" else 16)
    }


def test_two_prompts_on_one_model_are_switched(tmp_path):
    models = {"one": prompted(writer(), seed=1), "two": prompted(writer(), seed=2)}
    assert not torch.equal(output(models["one"]), output(models["two"]))
    folders = {name: save_adapter(model, tmp_path / name) for name, model in models.items()}
    both = load_adapter(load_adapter(writer(), folders["one"], name="one"), folders["two"], name="two")
    assert torch.equal(output(both), output(models["two"]))
    both.set_adapter("one")
    assert torch.equal(output(both), output(models["one"]))


def test_a_prompt_for_another_model_is_refused(tmp_path):
    folder = save_adapter(prompted(base().backbone), tmp_path / "prompt")
    for other, said in (
        (base(1).backbone, "another base of the same shape"),
        (base(width=32).backbone, "a base of .* parameters"),
        (writer(), "task_type is 'FEATURE_EXTRACTION', this LlamaForCausalLM needs 'CAUSAL_LM'"),
        (lora(base().backbone, modules_to_save=None), "already is of type .*LORA.*into separate models"),
        (prompted(base().backbone, "prefix"), "already is of type .*PREFIX_TUNING.*into separate models"),
    ):
        names = [name for name, _ in other.named_parameters()]
        with pytest.raises(AdapterError, match=said):
            load_adapter(other, folder, name="second")
        assert [name for name, _ in other.named_parameters()] == names


@pytest.mark.parametrize("attached", [False, True], ids=["first", "second"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop("prompt_embeddings"), "lacks 1 of 1 tensors"),
        (lambda t: t["prompt_embeddings"][0].fill_(math.nan), "not finite"),
        (lambda t: t.update(prompt_embeddings=t["prompt_embeddings"][:2].clone()), "has the shape"),
    ],
    ids=["missing", "nan", "shape"],
)
def test_a_damaged_prompt_is_refused_and_the_model_stays_what_it_was(tmp_path, edit, said, attached):
    folder = save_adapter(prompted(writer()), tmp_path / "prompt")
    check_refused_without_a_trace(folder, tmp_path / "good", writer(), edit, said, attached)


@pytest.mark.parametrize(
    ("length", "options", "said"),
    [
        (0, {}, "length=0: expected a whole number from 1"),
        (-3, {}, "length=-3"),
        (2.5, {}, r"length=2\.5"),
        (True, {}, "length=True"),
        (400, {"longest_text": 113}, r"that is 513.*bert model has 512 positions.*cut the texts to 112"),
        (5, {"start_tokens": 6}, "have 6 tokens, more than the prompt.*at least 6, or fewer words"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(length, options, said):
    with pytest.raises(ParameterError, match=said):
        check_prompt(base(), length, **options)
    check_prompt(base().config, 400, longest_text=112, start_tokens=400)


def test_positions_that_count_from_two_are_known():
    config = RobertaConfig(max_position_embeddings=514)
    check_prompt(config, 12, longest_text=500)
    with pytest.raises(ParameterError, match="roberta model has 512 positions"):
        check_prompt(config, 13, longest_text=500)


# ---------------------------------------------------------------- training


def train(model, *, lr, **options):
    rows = [{"input_ids": IDS[i % 2].tolist(), "attention_mask": [1] * 7, "labels": i % 3} for i in range(12)]
    settings = {"max_steps": 4, "logging_steps": 1, "logging_nan_inf_filter": False, "save_strategy": "no"}
    settings |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "learning_rate": lr, "warmup_steps": 1}
    watch = LossWatch()
    arguments = TrainingArguments("unused", **settings | group_by_length() | options)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[watch]).train()
    return watch.losses


def test_every_loss_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = train(base(), lr=1e-3)
    assert len(losses) == 4 and losses[0] == pytest.approx(math.log(3), abs=1e-3)


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = base()
    nn.init.constant_(model.head.bias, math.nan)
    with pytest.raises(ParameterError, match=r"nan at step 1, learning rate 1\.0e-03\. .*third of the learning rate"):
        train(model, lr=1e-3, warmup_steps=0, lr_scheduler_type="constant")
    with pytest.raises(ParameterError, match="logging_nan_inf_filter"):
        train(base(), lr=1e-3, logging_nan_inf_filter=True)


def test_memory_by_part_is_counted_by_hand():
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))
    model[0].requires_grad_(False)
    x = torch.randn(5, 64)
    optimizer = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    parts = training_memory(model, optimizer, lambda: model(x).sum())
    mib = 2**20
    assert parts["weights"] * mib == 4 * (64 * 32 + 32 * 8)
    assert parts["gradients"] * mib == 4 * 32 * 8
    assert parts["optimiser state"] * mib == 2 * 4 * 32 * 8 + 4  # and the count of steps
    assert parts["activations"] * mib == 4 * 5 * 32  # the input of the trained layer; below it nothing is kept


# ---------------------------------------------------------------- replies


def test_pairs_follow_the_split_and_are_graded():
    pairs = load_pairs("test")
    assert len(pairs) == 480 and len({pair.topic for pair in pairs}) == 12
    assert grade_replies(pairs, [pair.reply for pair in pairs]) == {"exact_match": 1.0, "topic_accuracy": 1.0}
    assert grade_replies(pairs[:2], ["", "x"]) == {"exact_match": 0.0, "topic_accuracy": 0.0}
    with pytest.raises(ParameterError, match="1 replies for 2 questions"):
        grade_replies(pairs[:2], ["one"])
    with pytest.raises(ParameterError, match="expected one of train"):
        load_pairs("nope")
