"""The shipped language model: its files, how well it predicts, how it is chosen, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.errors import ModelError, OfflineError
from helpers.hub import ENCODER, KNOWN_MODELS, LANGUAGE_MODEL, LANGUAGE_MODEL_FILES, find_model
from helpers.measuring import count_parameters
from helpers.models import OPEN_LANGUAGE_MODEL, language_model_config, load_language_model
from pretraining.report import PARTS, card, runs_of
from pretraining.score import score_texts

# Written for this test, on a subject and with names that no package has; it is not part of any training text.
UNSEEN = [
    "Return the number of boats that are moored in the harbour.\n\nParameters\n----------\nharbour : Harbour\n    The "
    "harbour to look at. It must have been opened before.\nat_night : bool, optional\n    If True, boats without a "
    "lantern are counted as well. Default is False.\n\nReturns\n-------\nint\n    The number of boats, zero if the "
    "harbour is empty.",
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


def read(name):
    return json.loads((LANGUAGE_MODEL / name).read_text(encoding="utf-8"))


def test_files_are_the_measured_ones_and_the_card_says_so():
    measured, log = read("measured.json"), read("training_log.json")
    assert set(measured) == set(PARTS)
    assert {part["sha256"] for part in measured.values()} == {LANGUAGE_MODEL_FILES["model.safetensors"]}
    assert (LANGUAGE_MODEL / "README.md").read_text(encoding="utf-8") == card(measured, log)
    curves = [[e["held_out_loss"] for e in run["curve"] if "held_out_loss" in e] for run in runs_of(log)]
    assert sum(map(len, curves)) >= 8 and all(curve[-1] == min(curve) for curve in curves)
    assert log["curve"][-1]["tokens"] == log["recipe"]["steps"] * log["recipe"]["tokens_per_step"]


def test_files_are_small_and_load_with_transformers_alone():
    assert sum(file.stat().st_size for file in LANGUAGE_MODEL.rglob("*")) < 48_000_000
    assert not [f for f in LANGUAGE_MODEL.rglob("*") if f.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    model = AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL)
    assert type(model) is LlamaForCausalLM and model.lm_head.weight is model.model.embed_tokens.weight
    assert 10_000_000 <= sum(p.numel() for p in model.parameters()) <= 30_000_000
    with safe_open(LANGUAGE_MODEL / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert len(AutoTokenizer.from_pretrained(LANGUAGE_MODEL)) == model.config.vocab_size == 8192


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


# ---------------------------------------------------------------- what it has learned


def test_it_predicts_text_that_it_has_never_seen_and_one_block_less_is_noticed():
    model, tokenizer = load_language_model(quiet=True)
    untrained, _ = load_language_model(random_weights=True, quiet=True)
    learned, before = (score_texts(m, tokenizer, UNSEEN).bits_per_byte for m in (model, untrained))
    model.model.layers = model.model.layers[:-1]
    shorter = score_texts(model, tokenizer, UNSEEN).bits_per_byte
    print(f"{learned:.3f} bits per byte, {before:.3f} before training, {shorter:.3f} without the last block")
    # The first run alone stood below 1.5; the second, which never saw such texts without a signature, costs a little.
    assert learned < 1.55 and before > 3 and shorter > learned + 0.2


def test_neither_a_cache_nor_padding_on_the_left_changes_what_is_generated():
    model, tokenizer = load_language_model(dtype=torch.float64, quiet=True)  # so that rounding decides nothing
    tokenizer.padding_side = "left"
    prompts = ["Return the", "Raises\n------\nValueError\n", "Compute the mean of the array and"]
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    batch, *alone = (
        tokenizer(text, padding=True, return_tensors="pt", return_token_type_ids=False) for text in (prompts, *prompts)
    )
    together = model.generate(**batch, **options, use_cache=False)[:, -40:]
    for one, row in zip(alone, together):
        assert torch.equal(model.generate(**one, **options)[:, -40:], row.unsqueeze(0))
    assert len({tuple(row.tolist()) for row in together}) == 3


@torch.no_grad()
def test_score_counts_every_token_once_and_is_the_loss_that_transformers_computes(shipped):
    model, tokenizer = shipped
    uniform = tiny_llama()
    torch.nn.init.zeros_(uniform.model.embed_tokens.weight)
    for window in (4, 7, 1024):
        score = score_texts(uniform, tokenizer, UNSEEN, window=window)
        assert score.tokens == sum(len(ids) - 1 for ids in tokenizer(UNSEEN)["input_ids"])
        assert score.loss == pytest.approx(torch.tensor(8192.0).log().item(), rel=1e-5)
        assert score.bits_per_byte == pytest.approx(13 * score.tokens / score.bytes, rel=1e-5)
    ids = tokenizer(UNSEEN[0], return_tensors="pt")["input_ids"]
    expected = model(input_ids=ids, labels=ids).loss.item()
    assert score_texts(model, tokenizer, UNSEEN[:1]).loss == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- choosing


def test_auto_is_the_shipped_model_without_a_gpu_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    model, _ = load_language_model()
    said = capsys.readouterr().out
    assert f"Language model 'auto': {count_parameters(model).total:,} parameters from data/language_model" in said
    assert "which ships with this project (no GPU is used)" in said
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in load_language_model(dtype=torch.bfloat16, quiet=True)[0].parameters()} == {torch.bfloat16}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's local cache, empty, on a machine that believes in a card and cannot reach the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: False)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda model, device: model)  # no card here
    return tmp_path / "cache"


def test_auto_with_a_gpu_takes_the_open_model_at_its_pinned_revision(other, cache, capsys):
    repository = cache / f"models--{OPEN_LANGUAGE_MODEL.replace('/', '--')}"
    shutil.copytree(other, repository / "snapshots" / KNOWN_MODELS[OPEN_LANGUAGE_MODEL]["revision"])
    model, _ = load_language_model(device="cuda")
    assert model.config.hidden_size == 16
    assert "from the Hub's local cache (there is a GPU)" in capsys.readouterr().out


def test_auto_with_a_gpu_falls_back_to_the_shipped_model_and_says_why(cache, capsys):
    model, _ = load_language_model(device="cuda:0")
    assert model.config.hidden_size > 16
    assert f"({OPEN_LANGUAGE_MODEL} cannot be had: model '{OPEN_LANGUAGE_MODEL}' is not on" in capsys.readouterr().out
    with pytest.raises(OfflineError, match="'owner/absent' is not on this machine"):  # a named model is not replaced
        load_language_model("owner/absent", device="cuda:0")


def test_a_folder_of_your_own_and_its_configuration_without_the_weights(other, monkeypatch, capsys):
    model, _ = load_language_model(str(other))
    assert model.config.hidden_size == 16 and "from local folder (as asked)" in capsys.readouterr().out
    monkeypatch.setattr("helpers.models._load", lambda *_, **__: pytest.fail("loaded weights"))
    assert language_model_config().vocab_size == 8192
    assert language_model_config(str(other)).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("special", "expected", "rows"),
    [
        ({"eos_token": "</s>", "unk_token": "<unk>"}, "<unk>", 64),  # as Llama 2
        ({"eos_token": "</s>", "pad_token": "</s>", "extra_special_tokens": ["<v_pad>"]}, "<v_pad>", 64),
        ({"eos_token": "</s>"}, "<|pad|>", 65),  # as GPT-2: a new row, which nothing ever reads
    ],
)
def test_padding_is_never_the_end_token(tmp_path, special, expected, rows):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:63]
    known = ["</s>", *([expected] if rows == 64 else []), *letters][:64]
    tokenizer = Tokenizer(BPE(vocab={t: i for i, t in enumerate(known)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    tiny_llama(vocabulary=64, pad_token_id=None, bos_token_id=None, eos_token_id=0).save_pretrained(tmp_path)
    model, tokenizer = load_language_model(str(tmp_path), quiet=True)
    assert tokenizer.pad_token == expected != tokenizer.eos_token
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().num_embeddings == rows
    assert model(input_ids=torch.tensor([[tokenizer.pad_token_id]])).logits.shape[-1] == rows


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", LANGUAGE_MODEL_FILES)
def test_damaged_or_missing_files_of_the_shipped_model(copy, name):
    """Five blocks instead of six, another word or one wrong bit would load, and only predict worse."""
    file, back = copy / name, "git checkout -- data/language_model"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\n" if file.suffix == ".json" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"{name}: SHA-256 .*, expected .*damaged.*{back}"):
        load_language_model()
    file.write_bytes(whole[:-10])
    with pytest.raises(ModelError, match=rf"{name}: cut off or damaged \({len(whole) - 10:,} bytes.*{back}"):
        load_language_model()
    file.unlink()
    with pytest.raises(ModelError, match=rf"(missing|not all of it).*{back}"):
        load_language_model()


def test_the_missing_folder_of_the_shipped_model(copy):
    shutil.rmtree(copy)
    with pytest.raises(ModelError, match=r"there is no such folder.*git checkout -- data/language_model"):
        load_language_model()


def test_a_tokenizer_of_another_model(other):
    tokenizer_of_bert = find_model(ENCODER)[0] / "tokenizer.json"
    shutil.copy(tokenizer_of_bert, other)
    with pytest.raises(ModelError, match=r"tokenizer\.json: its largest token id is 3\d{4}, the model has 8192"):
        load_language_model(str(other))


def test_a_tokenizer_whose_end_token_is_another(other):
    config, tokenizer_config = other / "config.json", other / "tokenizer_config.json"
    tokenizer_config.write_text(json.dumps({**json.loads(tokenizer_config.read_text()), "eos_token": "<|start|>"}))
    with pytest.raises(ModelError, match=r"end token '<\|start\|>' has the id 1, config\.json expects \[2\]"):
        load_language_model(str(other))
    silent = json.loads(config.read_text())
    del silent["eos_token_id"]  # says nothing, so nothing contradicts it
    config.write_text(json.dumps(silent))
    assert load_language_model(str(other), quiet=True)[1].eos_token_id == 1


def test_an_encoder_is_no_language_model():
    with pytest.raises(ModelError, match=r"a model of type 'bert' is an encoder: it reads in both directions"):
        load_language_model(ENCODER)
