"""Quantised loading: what is refused, what stays exact, and that adapters know their 4-bit base."""

import logging
import sys

import pytest
import tiny
import torch
import transformers
from cards import fake_cuda
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.adapters import check_lora, load_adapter, save_adapter
from helpers.errors import AdapterError, DeviceError, ModelError, ParameterError
from helpers.hub import LANGUAGE_MODEL
from helpers.measuring import count_parameters, fingerprint, quantization_constants
from helpers.models import load_classifier, load_encoder, load_language_model
from helpers.quantization import check_quantization, quantized_layers

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def four_bits(**options):
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} | options
    return BitsAndBytesConfig(load_in_4bit=True, **options)


def classifier(quantization):
    return load_classifier(labels=["a", "b", "c"], quantization=quantization)


def with_lora(model, *targets):
    config = LoraConfig(r=4, target_modules=list(targets), modules_to_save=["head"])
    check_lora(model, config)
    return get_peft_model(model, config)


@pytest.fixture
def inputs():
    ids = torch.randint(1000, 20_000, (4, 24), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


# ---------------------------------------------------------------- what is loaded


def test_linear_layers_are_packed_and_truly_counted():
    plain, packed = (load_encoder(quantization=q, quiet=True)[0] for q in (None, four_bits()))
    assert count_parameters(packed).total == count_parameters(plain).total == 22_713_216
    assert sum(p.numel() for p in packed.parameters()) < 18e6, "numel counts packed bytes"
    layers = dict(quantized_layers(packed))
    assert len(layers) == 37, "six layers in each of six blocks, and the pooler"
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    constants = [c for layer in layers.values() for c in quantization_constants(layer.weight).values()]
    stored = sum(layer.weight.nbytes for layer in layers.values()) + sum(c.nbytes for c in constants)
    assert 0.25 < stored / (2 * weights) < 0.30
    assert packed.get_input_embeddings().weight.dtype == torch.float32


def test_the_head_and_the_tied_output_stay_as_they_are():
    assert not hasattr(classifier(four_bits()).head.weight, "quant_state")
    writer, _ = load_language_model(quantization=four_bits(), quiet=True)
    assert writer.lm_head.weight is writer.get_input_embeddings().weight
    assert len(dict(quantized_layers(writer))) == 6 * 7


def test_evaluation_leaves_4_bit_weights_as_they_are(inputs):
    """On a CPU with AVX512-BF16, bitsandbytes rewrites them and rounds their scales unless it is kept from it."""
    model = classifier(four_bits(bnb_4bit_compute_dtype=torch.bfloat16))
    before = fingerprint(model)
    first = logits(model, inputs)
    assert fingerprint(model) == before
    assert torch.equal(logits(model, inputs), first)


def test_a_model_that_was_evaluated_can_still_be_trained(inputs):
    model = with_lora(classifier(four_bits()), "query")
    # PEFT's ordinary layers compute the same, but merge an update into packed bytes.
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 6
    logits(model, inputs)
    head = next(p for n, p in model.named_parameters() if n.endswith("modules_to_save.default.weight"))
    torch.nn.init.normal_(head)
    model.train()(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    reached = [p.grad.abs().max() for n, p in model.named_parameters() if "lora_B" in n]
    assert len(reached) == 6 and min(reached) > 0, "the first block's adapter must get a gradient through all others"


def test_a_changed_scale_changes_the_fingerprint():
    model, _ = load_encoder(quantization=four_bits(), quiet=True)
    before = fingerprint(model)
    layer = next(layer for _, layer in quantized_layers(model))
    layer.weight.quant_state.state2.absmax[0] *= 1.01
    assert fingerprint(model) != before


# ---------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path, inputs):
    model = with_lora(classifier(four_bits()), "query", "value")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter", logits(model, inputs)


def test_an_adapter_returns_to_its_4_bit_base(adapter, inputs):
    folder, expected = adapter
    assert torch.equal(logits(load_adapter(classifier(four_bits()), folder), inputs), expected)


OTHERS = [None, four_bits(bnb_4bit_quant_type="fp4"), four_bits(bnb_4bit_use_double_quant=False)]


@pytest.mark.parametrize("other", OTHERS)
def test_another_format_of_the_same_base_is_refused_unless_meant(adapter, inputs, other):
    folder, expected = adapter
    base = classifier(other)
    with pytest.raises(AdapterError, match=r"trained on nf4 with double.*other_base=True"):
        load_adapter(base, folder)
    assert not torch.equal(logits(load_adapter(base, folder, other_base=True), inputs), expected)


def test_a_rank_is_held_against_the_true_matrix():
    model = classifier(four_bits())
    check_lora(model, LoraConfig(r=384, target_modules=["query"]))
    with pytest.raises(ParameterError, match="384 x 384"):
        check_lora(model, LoraConfig(r=385, target_modules=["query"]))


# ---------------------------------------------------------------- bad input


@pytest.mark.skipif(transformers.__version__ < "5.1", reason="Falcon's layers were quantised then")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_stays_unquantised_is_refused(monkeypatch, tmp_path, bits):
    """Falcon's layers, were it not refused before it is read, stand for those of a model that nobody here knows."""
    monkeypatch.setattr("helpers.models.check_kind", lambda config: None)
    falcon = tiny.named("falcon").write(tmp_path)
    with pytest.raises(ModelError, match="not one layer of a model of type 'falcon' was quantised"):
        load_encoder(str(falcon), quantization=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), quiet=True)


def test_a_missing_bitsandbytes_and_one_without_library_are_named(monkeypatch):
    from bitsandbytes import cextension

    stand_in = cextension.ErrorHandlerMockBNBNativeLibrary.__new__(cextension.ErrorHandlerMockBNBNativeLibrary)
    monkeypatch.setattr(cextension, "lib", stand_in)
    with pytest.raises(DeviceError, match="it has no library for this machine"):
        check_quantization(four_bits())
    monkeypatch.setitem(sys.modules, "bitsandbytes.cextension", None)
    with pytest.raises(DeviceError, match=r"bitsandbytes cannot be used \(import of .*pip install --no-deps"):
        check_quantization(four_bits())


def test_a_card_without_bfloat16_or_without_kernels_is_refused_by_name(monkeypatch):
    fake_cuda(monkeypatch, (7, 5), ["sm_75"], name="Imaginary Card")
    with pytest.raises(DeviceError, match=r"Imaginary Card has compute capability 7.5.*torch.float16"):
        check_quantization(four_bits(bnb_4bit_compute_dtype=torch.bfloat16), device="cuda")
    check_quantization(four_bits(bnb_4bit_compute_dtype=torch.float16), device="cuda")
    fake_cuda(monkeypatch, (6, 0), ["sm_75", "sm_80"])
    with pytest.raises(DeviceError, match="no kernels in this PyTorch"):
        check_quantization(four_bits(), device="cuda")


def test_a_model_that_is_quantised_already_is_refused(tmp_path):
    AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL, quantization_config=four_bits()).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((LANGUAGE_MODEL / file).read_bytes())
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes\).*original"):
        load_language_model(str(tmp_path), quantization=four_bits(), quiet=True)
