"""Quantised loading: what is refused, what stays exact, and that adapters know their 4-bit base."""

import logging

import pytest
import torch
from cards import fake_cuda
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import helpers
from helpers.hub import LANGUAGE_MODEL, find_model
from helpers.quantization import check_quantization, quantized_layers

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
LABELS = ["a", "b", "c"]


def four_bits(**options):
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True} | options
    return BitsAndBytesConfig(load_in_4bit=True, **options)


@pytest.fixture
def inputs():
    ids = torch.randint(1000, 20_000, (4, 24), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


# ---------------------------------------------------------------- what is loaded


def test_linear_layers_are_packed_and_truly_counted():
    plain, packed = (helpers.load_encoder(quantization=q, quiet=True) for q in (None, four_bits()))
    assert helpers.count_parameters(packed).total == helpers.count_parameters(plain).total == 22_713_216
    assert sum(p.numel() for p in packed.parameters()) < 18e6, "numel counts packed bytes"
    layers = dict(quantized_layers(packed))
    assert len(layers) == 37, "six layers in each of six blocks, and the pooler"
    weights = sum(layer.in_features * layer.out_features for layer in layers.values())
    constants = [c for layer in layers.values() for c in helpers.quantization_constants(layer.weight).values()]
    stored = sum(layer.weight.nbytes for layer in layers.values()) + sum(c.nbytes for c in constants)
    assert 0.25 < stored / (2 * weights) < 0.30
    assert packed.get_input_embeddings().weight.dtype == torch.float32


def test_the_head_and_the_tied_output_stay_as_they_are():
    classifier = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    assert not hasattr(classifier.head.weight, "quant_state")
    writer, _ = helpers.load_language_model(quantization=four_bits(), quiet=True)
    assert writer.lm_head.weight is writer.get_input_embeddings().weight
    assert len(dict(quantized_layers(writer))) == 6 * 7


def test_evaluation_leaves_4_bit_weights_as_they_are(inputs):
    """On a CPU with AVX512-BF16, bitsandbytes rewrites them and rounds their scales unless it is kept from it."""
    model = helpers.load_classifier(labels=LABELS, quantization=four_bits(bnb_4bit_compute_dtype=torch.bfloat16))
    before = helpers.fingerprint(model)
    first = logits(model, inputs)
    assert helpers.fingerprint(model) == before
    assert torch.equal(logits(model, inputs), first)


def test_a_model_that_was_evaluated_can_still_be_trained(inputs):
    model = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    config = LoraConfig(r=4, target_modules=["query"], modules_to_save=["head"])
    model = get_peft_model(model, config)
    logits(model, inputs)
    head = next(p for n, p in model.named_parameters() if n.endswith("modules_to_save.default.weight"))
    torch.nn.init.normal_(head)
    model.train()(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    reached = [p.grad.abs().max() for n, p in model.named_parameters() if "lora_B" in n]
    assert len(reached) == 6 and min(reached) > 0, "the first block's adapter must get a gradient through all others"


def test_a_changed_scale_changes_the_fingerprint():
    model = helpers.load_encoder(quantization=four_bits(), quiet=True)
    before = helpers.fingerprint(model)
    layer = next(layer for _, layer in quantized_layers(model))
    layer.weight.quant_state.state2.absmax[0] *= 1.01
    assert helpers.fingerprint(model) != before


# ---------------------------------------------------------------- adapters


def test_peft_takes_its_4_bit_layers_for_a_classifier_too():
    """Its ordinary ones compute the same, but merge an update into packed bytes."""
    from peft.tuners.lora.bnb import Linear4bit

    model = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["query"], modules_to_save=["head"]))
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == 6


@pytest.fixture
def adapter(tmp_path, inputs):
    model = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    config = LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["head"])
    helpers.check_lora(model, config)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    helpers.save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter", logits(model, inputs)


def test_an_adapter_returns_to_its_4_bit_base(adapter, inputs):
    folder, expected = adapter
    base = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    assert torch.equal(logits(helpers.load_adapter(base, folder), inputs), expected)


OTHERS = [None, four_bits(bnb_4bit_quant_type="fp4"), four_bits(bnb_4bit_use_double_quant=False)]


@pytest.mark.parametrize("other", OTHERS)
def test_another_format_of_the_same_base_is_refused_unless_meant(adapter, inputs, other):
    folder, expected = adapter
    base = helpers.load_classifier(labels=LABELS, quantization=other)
    with pytest.raises(helpers.AdapterError, match=r"trained on nf4 with double.*other_base=True"):
        helpers.load_adapter(base, folder)
    loaded = helpers.load_adapter(base, folder, other_base=True)
    assert not torch.equal(logits(loaded, inputs), expected)


def test_a_rank_is_held_against_the_true_matrix():
    model = helpers.load_classifier(labels=LABELS, quantization=four_bits())
    helpers.check_lora(model, LoraConfig(r=384, target_modules=["query"]))
    with pytest.raises(helpers.ParameterError, match="384 x 384"):
        helpers.check_lora(model, LoraConfig(r=385, target_modules=["query"]))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BitsAndBytesConfig(), "neither load_in_4bit=True nor load_in_8bit=True"),
        (four_bits(bnb_4bit_quant_type="nf3"), "'nf3': expected 'nf4' or 'fp4'"),
    ],
)
def test_an_unknown_quantisation_is_refused(config, message):
    with pytest.raises(helpers.ParameterError, match=message):
        helpers.load_encoder(quantization=config)


def test_random_weights_are_not_quantised():
    with pytest.raises(helpers.ParameterError, match="choose one"):
        helpers.load_encoder(quantization=four_bits(), random_weights=True)


def test_missing_bitsandbytes_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.cextension", None)
    with pytest.raises(helpers.DeviceError, match=r"bitsandbytes cannot be imported.*pip install"):
        check_quantization(four_bits())


def test_a_bitsandbytes_without_library_is_named(monkeypatch):
    from bitsandbytes import cextension

    stand_in = cextension.ErrorHandlerMockBNBNativeLibrary.__new__(cextension.ErrorHandlerMockBNBNativeLibrary)
    monkeypatch.setattr(cextension, "lib", stand_in)
    with pytest.raises(helpers.DeviceError, match="no library for this machine"):
        check_quantization(four_bits())


def test_a_card_without_bfloat16_is_refused_by_name(monkeypatch):
    fake_cuda(monkeypatch, (7, 5), ["sm_75"], name="Imaginary Card")
    with pytest.raises(helpers.DeviceError, match=r"Imaginary Card has compute capability 7.5.*torch.float16"):
        check_quantization(four_bits(bnb_4bit_compute_dtype=torch.bfloat16), device="cuda")
    check_quantization(four_bits(bnb_4bit_compute_dtype=torch.float16), device="cuda")


def test_a_card_that_this_pytorch_cannot_use_is_refused(monkeypatch):
    fake_cuda(monkeypatch, (6, 0), ["sm_75", "sm_80"])
    with pytest.raises(helpers.DeviceError, match="no kernels in this PyTorch"):
        check_quantization(four_bits(), device="cuda")


def test_a_model_that_is_quantised_already_is_refused(tmp_path):
    folder, _ = find_model(str(LANGUAGE_MODEL))
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits(), trust_remote_code=False)
    model.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(helpers.ModelError, match=r"quantised already \(bitsandbytes\).*original"):
        helpers.load_language_model(str(tmp_path), quantization=four_bits(), quiet=True)
