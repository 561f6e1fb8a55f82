"""Adapters: saved whole, and loaded only where they belong; refusals.py has what is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from refusals import IDS, MASK, PROMPTS, SHAPE, TARGETS, base, lora, output, prompted, writer
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import adapters
from helpers.adapters import CONFIG, TRAINED_ON, WEIGHTS, check_lora, check_prompt, load_adapter, save_adapter
from helpers.errors import AdapterError, ParameterError
from helpers.measuring import count_parameters


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
    assert adapters.base_fingerprint(trained) == adapters.base_fingerprint(base())
    assert adapters.base_fingerprint(trained) != adapters.base_fingerprint(base(1))


def test_a_base_is_the_same_under_the_names_of_older_versions():
    """GPT-NeoX's output was called embed_out before transformers 5.15; Kaggle has 5.0."""
    new = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=16, **SHAPE))
    old = copy.deepcopy(new)
    old.embed_out = old._modules.pop("lm_head")
    assert adapters.base_fingerprint(old) == adapters.base_fingerprint(new)


def test_a_language_model_works_as_well(tmp_path):
    model = lora(writer(), target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=None)
    loaded = load_adapter(writer(), save_adapter(model, tmp_path / "adapter"))
    assert torch.equal(output(loaded), output(model))


def test_settings_that_work_pass():
    check_lora(base(), LoraConfig(r=16, lora_alpha=1, target_modules=TARGETS, modules_to_save=["head"]))
    check_lora(base(), LoraConfig(r=3, target_modules=r".*layer\.1\..*query"))
    check_lora(base(), LoraConfig(r=64, target_modules=TARGETS, rank_pattern={"query": 2, "value": 16}))
    check_prompt(base().config, 400, longest_text=112, start_tokens=400)
    check_prompt(RobertaConfig(max_position_embeddings=514), 12, longest_text=500)
    check_prompt(base().backbone, 3, prefix=True)


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


# ---------------------------------------------------------------- what an adapter trains beside LoRA


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
        writer(attention_bias=True),
        **{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "modules_to_save": None} | options,
    )
    folder = save_adapter(model, tmp_path / "adapter")
    assert torch.equal(output(load_adapter(writer(attention_bias=True), folder)), output(model))
    other = writer(attention_bias=True)
    other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(AdapterError, match="another base of the same shape"):
        load_adapter(other, folder)


def test_new_tokens_may_begin_at_random(tmp_path):
    """Rows that the adapter trains are not the base; the other rows are."""

    def grown(seed):
        model = writer(attention_bias=True)
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


# ---------------------------------------------------------------- other versions, and PEFT alone


def test_empty_keys_of_a_newer_version_are_left_out_with_a_note(trained, folder, capsys):
    path = folder / CONFIG
    empty = {"new_none": None, "new_no": False, "new_list": [], "new_map": {}, "new_text": ""}
    path.write_text(json.dumps(json.loads(path.read_text()) | empty | {"peft_version": "9.9.9"}))
    assert torch.equal(output(load_adapter(base(), folder)), output(trained))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and all(key in said for key in empty) and "9.9.9" in said


def test_an_adapter_that_peft_wrote_is_accepted_when_asked_for(trained, tmp_path, capsys):
    trained.save_pretrained(tmp_path)
    assert torch.equal(output(load_adapter(base(), tmp_path, unchecked=True)), output(trained))
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "nothing says which base and labels" in said
    with pytest.raises(AdapterError, match="another base of the same shape"):
        load_adapter(base(1), save_adapter(trained, tmp_path / "ours"), unchecked=True)


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
