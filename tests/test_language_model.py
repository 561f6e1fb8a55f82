"""The shipped language model: its files, how well it predicts, how it is loaded, and what is refused."""

import hashlib
import json
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers import ModelError, OfflineError, fingerprint, language_model_config, load_language_model
from helpers.hub import KNOWN_MODELS, LANGUAGE_MODEL, LANGUAGE_MODEL_FILES, find_model
from helpers.models import ENCODER, OPEN_LANGUAGE_MODEL
from pretraining.report import PARTS, card
from pretraining.score import score_texts

# Written for this test, on a subject and with names that no package has; it is not part of any training text.
UNSEEN = [
    "Return the number of boats that are moored in the harbour.\n\nParameters\n----------\nharbour : Harbour\n"
    "    The harbour to look at. It must have been opened before.\nat_night : bool, optional\n    If True, boats "
    "without a lantern are counted as well. Default is False.\n\nReturns\n-------\nint\n    The number of boats, "
    "zero if the harbour is empty.",
    "Raised when a ferry is asked to leave before all passengers are on board.\n\nThe attribute `missing` holds the "
    "names of those who have not arrived yet.",
    "Rewrite the timetable so that no two ferries use the same pier at the same time.\n\nThis is slow for large "
    "harbours, because every pair of ferries is compared. Use `tides=None` to ignore the tides.",
]


@pytest.fixture(scope="module")
def shipped():
    return load_language_model(quiet=True)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the shipped folder that stands in for it, to be damaged."""
    folder = tmp_path / "language_model"
    shutil.copytree(LANGUAGE_MODEL, folder)
    monkeypatch.setattr("helpers.hub.LANGUAGE_MODEL", folder)
    monkeypatch.setattr("helpers.models.LANGUAGE_MODEL", folder)
    return folder


@pytest.fixture
def other(tmp_path):
    """A folder in the Hub's layout that is not the shipped model: a tiny Llama with the shipped tokenizer."""
    folder = tmp_path / "other"
    tiny_llama().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(LANGUAGE_MODEL / name, folder)
    return folder


def tiny_llama(vocabulary=8192, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **sizes, **options))


# ---------------------------------------------------------------- the files


def test_files_are_the_measured_ones_and_small_enough():
    for name, sha256 in LANGUAGE_MODEL_FILES.items():
        assert hashlib.sha256((LANGUAGE_MODEL / name).read_bytes()).hexdigest() == sha256, name
    measured = json.loads((LANGUAGE_MODEL / "measured.json").read_text(encoding="utf-8"))
    assert set(measured) == set(PARTS)
    assert {part["sha256"] for part in measured.values()} == {LANGUAGE_MODEL_FILES["model.safetensors"]}
    assert sum(file.stat().st_size for file in LANGUAGE_MODEL.rglob("*")) < 48_000_000
    assert not [f for f in LANGUAGE_MODEL.rglob("*") if f.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_architecture_loads_with_transformers_alone():
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    assert type(model) is LlamaForCausalLM
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 10_000_000 <= sum(p.numel() for p in model.parameters()) <= 30_000_000
    with safe_open(LANGUAGE_MODEL / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert len(tokenizer) == model.config.vocab_size == 8192


def test_special_tokens_are_distinct_and_every_text_comes_back(shipped):
    model, tokenizer = shipped
    ids = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert ids == {0, 1, 2} and tokenizer.unk_token is None
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert model.generation_config.eos_token_id == 2 and model.generation_config.pad_token_id == 0
    for text in ("Return  the\n\n    value.", "naïve 数据 🙂", "".join(map(chr, range(1, 256))), "\r\n\t", ""):
        encoded = tokenizer(text)["input_ids"]
        assert encoded[0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded, skip_special_tokens=True) == text


def test_card_says_what_was_measured():
    found, log = (
        json.loads((LANGUAGE_MODEL / name).read_text(encoding="utf-8"))
        for name in ("measured.json", "training_log.json")
    )
    assert (LANGUAGE_MODEL / "README.md").read_text(encoding="utf-8") == card(found, log)
    curve = [entry["held_out_loss"] for entry in log["curve"] if "held_out_loss" in entry]
    assert len(curve) >= 8 and curve[-1] == min(curve)
    assert log["curve"][-1]["tokens"] == log["recipe"]["steps"] * log["recipe"]["tokens_per_step"]


# ---------------------------------------------------------------- what it has learned


def test_it_predicts_text_that_it_has_never_seen(shipped):
    model, tokenizer = shipped
    untrained, _ = load_language_model(random_weights=True, quiet=True)
    learned, before = (score_texts(m, tokenizer, UNSEEN).bits_per_byte for m in (model, untrained))
    print(f"{learned:.3f} bits per byte, {before:.3f} before training")
    assert learned < 1.5
    assert before > 3


def test_one_block_less_is_noticed(shipped):
    """The quality test can fail: without its last block the model predicts clearly worse."""
    model, tokenizer = load_language_model(quiet=True)
    whole = score_texts(model, tokenizer, UNSEEN).bits_per_byte
    model.model.layers = model.model.layers[:-1]
    assert score_texts(model, tokenizer, UNSEEN).bits_per_byte > whole + 0.2


@torch.no_grad()
def test_generation_with_and_without_cache_gives_the_same_tokens(shipped):
    model, tokenizer = shipped
    model = deepcopy(model).double()  # so that rounding decides nothing
    prompts = ["Return the", "Raises\n------\nValueError\n", "Compute the mean of the array and"]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    tokenizer.padding_side = "right"
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    cached, plain = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    new = cached[:, batch["input_ids"].shape[1] :]
    for prompt, row in zip(prompts, new):
        alone = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**{name: alone[name] for name in inputs}, **options)
        assert torch.equal(ids[0, alone["input_ids"].shape[1] :], row), "padding on the left changed the answer"
    assert len({tuple(row.tolist()) for row in new}) == 3


def test_score_counts_every_token_once_whatever_the_window(shipped):
    _, tokenizer = shipped
    uniform = tiny_llama()
    torch.nn.init.zeros_(uniform.model.embed_tokens.weight)
    for window in (4, 7, 1024):
        score = score_texts(uniform, tokenizer, UNSEEN, window=window)
        assert score.tokens == sum(len(ids) - 1 for ids in tokenizer(UNSEEN)["input_ids"])
        assert score.loss == pytest.approx(torch.tensor(8192.0).log().item(), rel=1e-5)
        assert score.bits_per_byte == pytest.approx(13 * score.tokens / score.bytes, rel=1e-5)


def test_score_is_the_loss_that_transformers_computes(shipped):
    model, tokenizer = shipped
    ids = tokenizer(UNSEEN[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss.item()
    assert score_texts(model, tokenizer, UNSEEN[:1]).loss == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- choosing


def test_auto_is_the_shipped_model_without_a_gpu_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    model, _ = load_language_model()
    said = capsys.readouterr().out
    assert f"Language model 'auto': {sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert "data/language_model, which ships with this repository (no GPU is used)" in said
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_auto_with_a_gpu_takes_the_open_model_at_its_pinned_revision(other, tmp_path, monkeypatch, capsys):
    repository = tmp_path / "cache" / f"models--{OPEN_LANGUAGE_MODEL.replace('/', '--')}"
    shutil.copytree(other, repository / "snapshots" / KNOWN_MODELS[OPEN_LANGUAGE_MODEL]["revision"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: model)  # no card here
    model, _ = load_language_model(device="cuda")
    assert model.config.hidden_size == 16
    assert "from the Hub's local cache (there is a GPU)" in capsys.readouterr().out


def test_auto_with_a_gpu_falls_back_to_the_shipped_model_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: model)
    model, _ = load_language_model(device="cuda:0")
    assert model.config.hidden_size > 16
    assert f"({OPEN_LANGUAGE_MODEL} cannot be had: model '{OPEN_LANGUAGE_MODEL}' is not on" in capsys.readouterr().out


def test_the_configuration_can_be_had_without_the_weights(other, monkeypatch):
    monkeypatch.setattr("helpers.models._load", lambda *_, **__: pytest.fail("loaded weights"))
    assert language_model_config().vocab_size == 8192
    assert language_model_config(str(other)).num_hidden_layers == 2
    with pytest.raises(ModelError, match="no such folder"):
        language_model_config("./nowhere")


def test_a_named_model_is_not_replaced_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    with pytest.raises(OfflineError, match="'owner/absent' is not on this machine"):
        load_language_model("owner/absent")


def test_a_folder_of_your_own_and_random_weights(other, capsys):
    model, _ = load_language_model(str(other))
    assert model.config.hidden_size == 16 and "from local folder (as asked)" in capsys.readouterr().out
    one, same, next_one = (load_language_model(random_weights=True, seed=s, quiet=True)[0] for s in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(next_one)
    half, _ = load_language_model(dtype=torch.bfloat16, quiet=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("special", "named", "expected", "rows"),
    [
        ({"eos_token": "</s>", "unk_token": "<unk>"}, ["</s>", "<unk>"], "<unk>", 64),  # as Llama 2
        (
            {"eos_token": "</s>", "pad_token": "</s>", "extra_special_tokens": ["<v_pad>"]},
            ["</s>", "<v_pad>"],
            "<v_pad>",
            64,
        ),
        ({"eos_token": "</s>"}, ["</s>"], "<|pad|>", 65),  # as GPT-2: a new row, which nothing ever reads
    ],
)
def test_padding_is_never_the_end_token(tmp_path, special, named, expected, rows):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: 64 - len(named)]
    tokenizer = Tokenizer(BPE(vocab={t: i for i, t in enumerate([*named, *letters])}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    tiny_llama(vocabulary=64, pad_token_id=None, bos_token_id=None, eos_token_id=0).save_pretrained(tmp_path)
    model, tokenizer = load_language_model(str(tmp_path), quiet=True)
    assert tokenizer.pad_token == expected != tokenizer.eos_token
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().num_embeddings == rows
    assert model(input_ids=torch.tensor([[tokenizer.pad_token_id]])).logits.shape[-1] == rows


# ---------------------------------------------------------------- bad input


def test_damaged_or_missing_files_of_the_shipped_model(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    back = r"git checkout -- data/language_model"
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    with pytest.raises(ModelError, match=rf"model\.safetensors: SHA-256 .*, expected .*damaged.*{back}"):
        load_language_model()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match=rf"model\.safetensors: {len(whole) - 1000:,} bytes, its header promises"):
        load_language_model()
    weights.unlink()
    with pytest.raises(ModelError, match=rf"found no weights, expected \*\.safetensors.*{back}"):
        load_language_model()
    weights.write_bytes(whole)
    load_language_model(quiet=True)
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8").replace('"the"', '"teh"', 1), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"tokenizer\.json: SHA-256 .*{back}"):
        load_language_model()
    tokenizer.unlink()
    with pytest.raises(ModelError, match=rf"no readable tokenizer.*{back}"):
        load_language_model()
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match=rf"the folder of the language model is missing.*{back}"):
        load_language_model()


def test_a_changed_number_in_the_shipped_configuration(copy):
    """Five blocks instead of six, or another rotary base, would load and only predict worse."""
    file = copy / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(ModelError, match=r"config\.json: SHA-256 .*git checkout"):
        load_language_model()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n"
PAGE = b"<!DOCTYPE html><html>Sign in</html>"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"), [(POINTER, "a Git LFS pointer.*git lfs pull"), (PAGE, "a web page, not")]
)
def test_files_that_only_stand_in_for_a_model(other, name, content, message):
    (other / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: {message}"):
        load_language_model(str(other))


def test_a_cut_off_tokenizer_and_one_that_holds_something_else(other):
    file = other / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:5000])
    with pytest.raises(ModelError, match=r"tokenizer\.json: not valid JSON.*cut off \(5,000 bytes\)"):
        load_language_model(str(other))
    file.write_text('{"an": "answer"}')
    with pytest.raises(ModelError, match="no readable tokenizer"):
        load_language_model(str(other))
    file.write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer\.json: a JSON list, not a tokenizer"):
        load_language_model(str(other))


@pytest.mark.parametrize("change", [{"hidden_size": "16"}, {"num_attention_heads": 3}, {"model_type": "surprise"}])
def test_a_configuration_that_no_model_can_have(other, change):
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_language_model(str(other))


def test_a_tokenizer_of_another_model(other):
    tokenizer_of_bert = find_model(ENCODER)[0] / "tokenizer.json"
    shutil.copy(tokenizer_of_bert, other)
    with pytest.raises(ModelError, match=r"tokenizer\.json: its largest token id is 3\d{4}, the model has 8192"):
        load_language_model(str(other))


def test_a_tokenizer_whose_end_token_is_another(other):
    config = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.update(eos_token="<|start|>")
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"end token '<\|start\|>' has the id 1, config\.json expects \[2\]"):
        load_language_model(str(other))
    model_config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    del model_config["eos_token_id"]  # says nothing, so nothing contradicts it
    (other / "config.json").write_text(json.dumps(model_config))
    assert load_language_model(str(other), quiet=True)[1].eos_token_id == 1


def test_an_encoder_is_no_language_model():
    with pytest.raises(ModelError, match=r"the weights lack .* tensors of this BertLMHeadModel"):
        load_language_model(ENCODER)
