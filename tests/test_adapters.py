"""Adapters: saved whole, loaded only where they belong; LoRA settings that cannot work are refused by name."""

import json
import math
from pathlib import Path

import pytest
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
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import adapters
from helpers.adapters import CONFIG, TRAINED_ON, WEIGHTS, check_lora, check_prompt, load_adapter, save_adapter
from helpers.errors import AdapterError, ParameterError
from helpers.measuring import count_parameters
from helpers.models import Classifier

LABELS = ["a", "b", "c"]
TARGETS = ["query", "value"]
SHAPE = {"vocab_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS, MASK = torch.arange(5, 19).reshape(2, 7), torch.ones(2, 7, dtype=torch.long)


def base(seed=0, *, width=16, labels=LABELS):
    torch.manual_seed(seed)
    return Classifier(BertModel(BertConfig(hidden_size=width, **SHAPE)), labels).eval()


def writer():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, **SHAPE)).eval()


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


@pytest.fixture
def trained():
    return lora(base())


@pytest.fixture
def folder(trained, tmp_path):
    return save_adapter(trained, tmp_path / "adapter")


# ---------------------------------------------------------------- saved and loaded


def test_a_fresh_base_with_the_adapter_answers_the_same(trained, folder):
    assert not torch.equal(output(base()), output(trained))
    loaded = load_adapter(base(), folder)
    assert torch.equal(output(loaded), output(trained))
    assert not loaded.training and count_parameters(loaded).trainable == 0


def test_the_head_travels_along_and_the_folder_is_replaced_whole(trained, folder):
    (folder / "old.txt").write_text("left over")
    save_adapter(trained, folder)
    assert {CONFIG, WEIGHTS, TRAINED_ON} <= {p.name for p in folder.iterdir()} and not (folder / "old.txt").exists()
    head = {"base_model.model.head.weight", "base_model.model.head.bias"}
    assert head <= set(load_file(folder / WEIGHTS))
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"], "a draft was left behind"


def test_a_broken_off_saving_leaves_the_old_adapter(trained, folder, monkeypatch):
    def break_off(self, folder, **_):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, WEIGHTS).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(type(trained), "save_pretrained", break_off)
    with pytest.raises(OSError, match="no space left"):
        save_adapter(trained, folder)
    assert torch.equal(output(load_adapter(base(), folder)), output(trained))
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"], "a draft was left behind"


@pytest.mark.parametrize(
    ("build", "adapt"),
    [
        (base, lambda model, n: lora(model, r=2 * n, target_modules=["query", "key", "intermediate.dense"][:n])),
        (writer, lambda model, n: prompted(model, seed=n)),
    ],
    ids=["LoRA", "prompt"],
)
def test_two_adapters_on_one_base_are_switched(tmp_path, build, adapt):
    one, two = adapt(build(), 1), adapt(build(), 3)
    folders = [save_adapter(model, tmp_path / name) for model, name in ((one, "one"), (two, "two"))]
    both = load_adapter(load_adapter(build(), folders[0], name="one"), folders[1], name="two")
    assert torch.equal(output(both), output(two)) and not torch.equal(output(one), output(two))
    both.set_adapter("one")
    assert torch.equal(output(both), output(one))
    with pytest.raises(ParameterError, match=r"'one'.*attached already"):
        load_adapter(both, folders[0], name="one")
    again = save_adapter(both, tmp_path / "again", name="two")
    assert torch.equal(output(load_adapter(build(), again)), output(two))


def test_the_fingerprint_of_the_base_does_not_see_the_adapter(trained):
    assert adapters.base_fingerprint(trained, without=["head"]) == adapters.base_fingerprint(base(), without=["head"])
    assert adapters.base_fingerprint(trained, without=["head"]) != adapters.base_fingerprint(base(1), without=["head"])


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
    with pytest.raises(AdapterError, match=r"float32 weights, here: bfloat16 weights\..*other_base=True"):
        load_adapter(base().to(torch.bfloat16), folder)
    with pytest.raises(AdapterError, match=r"labels \['a', 'b', 'c'\].*same labels in the same order"):
        load_adapter(base(labels=["a", "c", "b"]), folder)
    with pytest.raises(AdapterError, match="a model of task_type None, here: a model of task_type 'CAUSAL_LM'"):
        load_adapter(writer(), folder)


FAULTS = {
    "missing": ("LoRA", lambda t: t.pop(next(k for k in t if "lora_B" in k)), "lacks 1 of 10 tensors.*lora_B"),
    "no head": ("LoRA", lambda t: [t.pop(k) for k in list(t) if "head" in k], "lacks 2 of 10 tensors.*head included"),
    "extra": ("LoRA", lambda t: t.update({"base_model.model.spare.weight": torch.zeros(1)}), "fit nowhere.*spare"),
    "shape": ("LoRA", lambda t: t.update({k: v[:2].clone() for k, v in t.items() if "lora_A" in k}), "has the shape"),
    "nan": (
        "LoRA",
        lambda t: next(v for k, v in t.items() if "lora_A" in k)[0].fill_(math.nan),
        "not finite.*diverged",
    ),
    "infinite": (
        "LoRA",
        lambda t: t["base_model.model.head.bias"].fill_(math.inf),
        "head.bias holds values that are n",
    ),
    "no prompt": ("prompt", lambda t: t.pop("prompt_embeddings"), "lacks 1 of 1 tensors"),
    "prompt nan": ("prompt", lambda t: t["prompt_embeddings"][0].fill_(math.nan), "not finite"),
    "prompt shape": ("prompt", lambda t: t.update(prompt_embeddings=torch.zeros(2, 16)), "has the shape"),
}


@pytest.mark.parametrize(("kind", "edit", "said"), FAULTS.values(), ids=list(FAULTS))
@pytest.mark.parametrize("attached", [False, True], ids=["first", "second"])
def test_damaged_weights_are_refused_and_the_model_stays_what_it_was(tmp_path, kind, edit, said, attached):
    """Alone or beside a good one: the model has the same parts and answers as before."""
    model, saved = (base(), lora(base())) if kind == "LoRA" else (writer(), prompted(writer()))
    good, bad = save_adapter(saved, tmp_path / "good"), save_adapter(saved, tmp_path / "bad")
    if attached:
        model = load_adapter(model, good, name="good")
    names, before = [name for name, _ in model.named_parameters()], output(model)
    tensors = load_file(bad / WEIGHTS)
    edit(tensors)
    save_file(tensors, bad / WEIGHTS)
    with pytest.raises(AdapterError, match=said):
        load_adapter(model, bad, name="bad")
    assert [name for name, _ in model.named_parameters()] == names
    if attached:
        model.set_adapter("good")
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, TRAINED_ON])
def test_missing_and_truncated_files_are_refused_by_name(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=rf"{file}: damaged.*Copy the adapter again"):
        load_adapter(base(), folder)
    (folder / file).unlink()
    with pytest.raises(AdapterError, match=rf"{file}: no such file"):
        load_adapter(base(), folder)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("peft_type", "NOPE", "NOPE"),
        ("peft_type", "IA3", "not one of ours"),
        ("task_type", "CAUSAL_LM", "task_type 'CAUSAL_LM', here: a model of task_type None"),
        ("unknown_key", 1, r"does not know \{'unknown_key': 1\}: written by PEFT .*, this is .*"),
        ("r", 0, "r=0"),
        ("init_lora_weights", "pissa", "moved a part of the base"),
        ("target_modules", ["query", "nope"], "no module 'nope'"),
    ],
)
def test_a_wrong_configuration_is_refused(folder, key, value, said):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(AdapterError, match=said):
        load_adapter(base(), folder)


def test_what_would_not_fit_again_is_not_saved(trained, tmp_path):
    with pytest.raises(AdapterError, match=r"pissa.*moved a part of the base"):
        save_adapter(lora(base(), init_lora_weights="pissa"), tmp_path / "adapter")
    with pytest.raises(ParameterError, match="adapters default"):
        save_adapter(trained, tmp_path / "adapter", name="other")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, "r=0"),
        ({"r": 17}, r"r=17: .*query is a matrix of 16 x 16.*above 16"),
        ({"r": "8"}, "r='8': expected a whole number"),
        ({"rank_pattern": {"query": 17}}, r"r=17: .*query is a matrix of 16 x 16.*above 16"),
        ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\]=0: expected a whole number"),
        ({"rank_pattern": {"nope": 4}}, "rank_pattern: this model has no module 'nope'"),
        (
            {"alpha_pattern": {"layer.1.*query": "8"}},
            r"alpha_pattern\['layer.1.\*query'\]='8': expected a number above 0",
        ),
        ({"lora_alpha": 0}, "lora_alpha=0.*nothing would be learned"),
        ({"lora_alpha": "16"}, "lora_alpha='16': expected a number"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0: expected a number from 0 to below 1"),
        ({"lora_dropout": "0.1"}, "lora_dropout='0.1'"),
        ({"target_modules": ["query", "qeury"]}, "no module 'qeury'.*dense, head, key, query, value"),
        ({"target_modules": r".*\.nope"}, r"no module '\.\*\\\\\.nope'"),
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
    check_lora(base(), LoraConfig(r=64, target_modules=TARGETS, rank_pattern={"query": 2, "value": 16}))


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("build", [writer, lambda: base().backbone], ids=["language model", "encoder"])
def test_a_prompt_answers_the_same_in_a_fresh_model(tmp_path, build, kind):
    model = prompted(build(), kind)
    loaded = load_adapter(build(), save_adapter(model, tmp_path / "prompt"))
    assert torch.allclose(output(loaded), output(model), atol=1e-6)
    assert not torch.allclose(output(prompted(build(), kind, seed=6)), output(model), atol=1e-3)
    assert adapters.base_fingerprint(model) == adapters.base_fingerprint(build()) == adapters.base_fingerprint(loaded)
    shipped = load_file(tmp_path / "prompt" / WEIGHTS)
    assert {name: tensor.shape for name, tensor in shipped.items()} == {
        "prompt_embeddings": (3, 16 * 2 * 2 if kind == "prefix" else 16)
    }


def test_a_prompt_for_another_model_is_refused(tmp_path):
    folder = save_adapter(prompted(base().backbone), tmp_path / "prompt")
    for other, said in (
        (base(1).backbone, "another base of the same shape"),
        (base(width=32).backbone, "a base of .* parameters"),
        (writer(), "task_type 'FEATURE_EXTRACTION', here: a model of task_type 'CAUSAL_LM'"),
        (lora(base().backbone, modules_to_save=None), "already is of type .*LORA.*into separate models"),
        (prompted(base().backbone, "prefix"), "already is of type .*PREFIX_TUNING.*into separate models"),
    ):
        names = [name for name, _ in other.named_parameters()]
        with pytest.raises(AdapterError, match=said):
            load_adapter(other, folder, name="second")
        assert [name for name, _ in other.named_parameters()] == names


@pytest.mark.parametrize(
    ("length", "options", "said"),
    [
        (0, {}, "length=0: expected a whole number from 1"),
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


# ---------------------------------------------------------------- what an adapter trains beside LoRA


def biased():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=16, attention_bias=True, **SHAPE)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "all"},
        {"trainable_token_indices": [3, 31]},
        {"trainable_token_indices": {"embed_tokens": [3, 31]}},
        {"modules_to_save": ["embed_tokens", "model.norm"]},
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=str,
)
def test_what_an_adapter_trains_is_not_the_base(tmp_path, options):
    """Biases, tokens, modules: saved with the adapter, and left out of the fingerprint."""
    model = lora(
        biased(), **{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "modules_to_save": None} | options
    )
    folder = save_adapter(model, tmp_path / "adapter")
    assert torch.equal(output(load_adapter(biased(), folder)), output(model))
    other = biased()
    other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(AdapterError, match="another base of the same shape"):
        load_adapter(other, folder)


def test_new_tokens_may_begin_at_random(tmp_path):
    """Rows that the adapter trains are not the base; the other rows are."""

    def grown(seed):
        model = biased()
        model.resize_token_embeddings(34, mean_resizing=False)
        torch.manual_seed(seed)
        model.get_input_embeddings().weight.data[32:].normal_()
        model.lm_head.weight.data[32:] = 0
        return model

    options = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "modules_to_save": None}
    model = lora(grown(1), trainable_token_indices=[32, 33], **options)
    folder = save_adapter(model, tmp_path / "adapter")
    assert torch.equal(output(load_adapter(grown(2), folder)), output(model))
    other = grown(1)
    other.get_input_embeddings().weight.data[31] += 1
    with pytest.raises(AdapterError, match="another base of the same shape"):
        load_adapter(other, folder)


def unfrozen():
    model = lora(base())
    model.base_model.model.backbone.pooler.requires_grad_(True)
    return model


def merged():
    model = lora(base())
    model.merge_adapter()
    return model


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: get_peft_model(base(), IA3Config(target_modules=["key"], feedforward_modules=[])), "peft_type=IA3"),
        (lambda: get_peft_model(base(), AdaLoraConfig(target_modules=TARGETS, total_step=9)), "peft_type=ADALORA"),
        (lambda: lora(base(), bias="lora_only"), "bias='lora_only'.*Use bias='all'"),
        (unfrozen, r"2 tensors of the base are trained as well, such as backbone\.pooler.*modules_to_save"),
        (merged, "merged into the base.*unmerge_adapter"),
    ],
    ids=["IA3", "AdaLoRA", "some biases", "unfrozen", "merged"],
)
def test_what_cannot_come_back_is_not_saved(build, said, tmp_path):
    with pytest.raises(AdapterError, match=said):
        save_adapter(build(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# ---------------------------------------------------------------- other versions, and PEFT alone


def test_empty_keys_of_a_newer_version_are_left_out_with_a_note(trained, folder, capsys):
    path = folder / CONFIG
    empty = {"new_none": None, "new_no": False, "new_list": [], "new_map": {}, "new_text": ""}
    path.write_text(json.dumps(json.loads(path.read_text()) | empty | {"peft_version": "9.9.9"}))
    assert torch.equal(output(load_adapter(base(), folder)), output(trained))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and all(key in said for key in empty) and "9.9.9" in said
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new_number": 0}))
    with pytest.raises(AdapterError, match=r"\{'new_number': 0\}: written by PEFT 9\.9\.9, this is \d"):
        load_adapter(base(), folder)


def test_an_adapter_that_peft_wrote_is_accepted_when_asked_for(trained, tmp_path, capsys):
    trained.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=rf"{TRAINED_ON}: no such file.*unchecked=True"):
        load_adapter(base(), tmp_path)
    assert torch.equal(output(load_adapter(base(), tmp_path, unchecked=True)), output(trained))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "nothing says which base and labels" in said
    with pytest.raises(AdapterError, match="no module"):
        load_adapter(writer(), save_config(tmp_path, task_type="CAUSAL_LM"), unchecked=True)
    with pytest.raises(AdapterError, match="another base of the same shape"):
        load_adapter(base(1), save_adapter(trained, tmp_path / "ours"), unchecked=True)


def save_config(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


HEADS = {
    "SEQ_CLS": (BertForSequenceClassification, BertConfig, {"hidden_size": 16, **SHAPE}),
    "TOKEN_CLS": (BertForTokenClassification, BertConfig, {"hidden_size": 16, **SHAPE}),
    "SEQ_2_SEQ_LM": (
        T5ForConditionalGeneration,
        T5Config,
        {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
}


@pytest.mark.parametrize("task_type", HEADS)
def test_other_task_types_fit_their_models(task_type, tmp_path):
    kind, config, shape = HEADS[task_type]

    def fresh():
        torch.manual_seed(0)
        return kind(config(**({"vocab_size": 32, "d_kv": 8, "decoder_start_token_id": 0} | shape))).eval()

    targets = ["q", "v"] if "T5" in kind.__name__ else TARGETS
    options = {"task_type": task_type, "target_modules": targets, "modules_to_save": None}
    model = lora(fresh(), **options)
    loaded = load_adapter(fresh(), save_adapter(model, tmp_path / "adapter"))
    more = {"labels": IDS} if "T5" in kind.__name__ else {}
    with torch.no_grad():
        one, other = (m(input_ids=IDS, attention_mask=MASK, **more).logits for m in (model, loaded))
    assert torch.equal(one, other)
    with pytest.raises(ParameterError, match=f"task_type='{task_type}': this Classifier needs None"):
        lora(base(), **options)


# ---------------------------------------------------------------- prompts of other shapes


def test_a_prefix_is_refused_where_no_keys_can_be_given():
    with pytest.raises(ParameterError, match=r"distilbert model takes no past keys.*soft prompt"):
        check_prompt(DistilBertModel(DistilBertConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=2)), 3, prefix=True)
    check_prompt(base().backbone, 3, prefix=True)
    with pytest.raises(ParameterError, match=r"layers without keys and values \(conv\)"):
        check_prompt(Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), 3, prefix=True)
