"""The memory bill against real training steps on the CPU, published figures, and bad input."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
)

from helpers import memory
from helpers.errors import DeviceError
from helpers.measuring import quantization_constants
from helpers.memory import CARDS, GIB, PRECISIONS, memory_bill, require_fit
from helpers.models import transformer_blocks

logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*")

SMALL = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 256}
LLAMA = LlamaConfig(**SMALL)
GPT2 = GPT2Config(n_embd=128, n_layer=3, n_head=4, n_positions=256, vocab_size=1000)  # Conv1D on disk
GEMMA = Gemma2Config(**SMALL, head_dim=32)  # has no fused attention
# Looked at the values of its mask before transformers 5.23.
OPT = OPTConfig(hidden_size=128, ffn_dim=320, num_hidden_layers=3, num_attention_heads=4, vocab_size=1000)
QWEN = Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True)


SETTINGS = [
    (LLAMA, dict(method="full", batch=2, length=32, precision="float32")),
    (LLAMA, dict(method="full", batch=4, length=64)),
    (LLAMA, dict(method="full", batch=2, length=128, gradient_checkpointing=True)),
    (QWEN, dict(method="full", batch=1, length=200)),
    (LLAMA, dict(method="lora", batch=2, length=64, rank=4, precision="float32")),
    (LLAMA, dict(method="lora", batch=2, length=64, rank=16)),
    (LLAMA, dict(method="lora", batch=3, length=100, targets=["q_proj", "v_proj"])),
    (QWEN, dict(method="lora", batch=4, length=32, gradient_checkpointing=True)),
    (LLAMA, dict(method="qlora", batch=2, length=64, precision="float32")),
    (LLAMA, dict(method="qlora", batch=2, length=64)),
    (LLAMA, dict(method="qlora", batch=4, length=128, rank=16, double_quantization=False)),
    (LLAMA, dict(method="qlora", batch=1, length=256, targets=["q_proj", "v_proj"], quantization="fp4")),
    (LLAMA, dict(method="qlora", batch=4, length=64, gradient_checkpointing=True)),
    (QWEN, dict(method="qlora", batch=2, length=96, gradient_checkpointing=True, precision="float32")),
    (GPT2, dict(method="full", batch=2, length=64, precision="float32")),
    (GPT2, dict(method="qlora", batch=2, length=64)),
    (OPT, dict(method="lora", batch=2, length=64)),
    (GEMMA, dict(method="lora", batch=2, length=64)),
    (GEMMA, dict(method="qlora", batch=2, length=64, precision="float32")),
]


def real_model(config, folder, options, storage=torch.uint8):
    """What a training script builds, from random weights on disk."""
    compute = PRECISIONS[options.get("precision", "bfloat16")]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(compute).save_pretrained(folder)
    more = {}
    if options["method"] == "qlora":
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.get("quantization", "nf4"),
            bnb_4bit_use_double_quant=options.get("double_quantization", True),
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=storage,
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=compute, trust_remote_code=False, **more)
    if options["method"] == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if options.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.enable_input_require_grads()
    if options["method"] != "full":
        targets = options.get("targets", "all-linear")
        lora = LoraConfig(r=options.get("rank", 8), target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return model.train(), compute


def measured(config, folder, options):
    """Bytes by part of one real step, counted here and not by helpers.memory."""
    model, compute = real_model(config, folder, options)
    parameters = list(model.parameters())
    constants = [c for p in parameters for c in quantization_constants(p).values()]
    stored = {t.untyped_storage().data_ptr() for t in (*parameters, *constants)}
    kept, again, current = {}, {}, [None]

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stored:
            (kept if current[0] is None else again.setdefault(current[0], {}))[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(1, 900, (options["batch"], options["length"]))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # one padded token, as in a batch of texts of several lengths
    stored |= {t.untyped_storage().data_ptr() for t in (ids, mask)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        if options.get("gradient_checkpointing"):
            for number, block in enumerate(transformer_blocks(model)):  # what is computed again, by block;
                # hooks of the block itself are not called again
                block.input_layernorm.register_forward_pre_hook(lambda *_, n=number: current.__setitem__(0, n))
            loss.backward()
    if not options.get("gradient_checkpointing"):
        loss.backward()
    trained = [p for p in parameters if p.requires_grad]
    adamw = torch.optim.AdamW(trained)
    gradients = sum(p.grad.nbytes for p in trained)
    adamw.step()
    inside = max((sum(s.nbytes() for p, s in found.items() if p not in kept) for found in again.values()), default=0)
    with_adapters = options["method"] != "full"
    return {
        "weights": sum(p.nbytes for p in parameters if not (p.requires_grad and with_adapters)),
        "constants": sum(c.nbytes for c in constants),
        "adapters": sum(p.nbytes for p in trained) if with_adapters else 0,
        "gradients": gradients,
        "optimiser state": sum(v.nbytes for state in adamw.state.values() for v in state.values()),
        "activations and logits": sum(s.nbytes() for s in kept.values()) + inside,
    }


@pytest.mark.parametrize(("config", "options"), SETTINGS)
def test_the_bill_is_what_a_real_step_takes(config, options, tmp_path):
    """Byte for byte; what is kept for the backward pass within 5 percent."""
    truth = measured(config, tmp_path, options)
    bill = memory_bill(config, **options)
    parts = bill.parts()
    parts["activations and logits"] = parts.pop("activations") + parts.pop("logits")
    kept, really = (found.pop("activations and logits") for found in (parts, truth))
    print(options, f"kept: {kept:,} by the bill, {kept / really - 1:+.2%}")
    assert parts == truth
    assert kept == pytest.approx(really, rel=0.05)


def test_what_was_built_is_kept_between_calls():
    """Checkpointing and the optimiser are reckoned from the same pass; another length is another pass."""
    memory._build.cache_clear(), memory._kept.cache_clear()
    first, again = memory_bill(LLAMA, length=48), memory_bill(copy.deepcopy(LLAMA), length=48)
    less = memory_bill(LLAMA, length=48, gradient_checkpointing=True, optimizer="paged_adamw_8bit")
    longer = memory_bill(LLAMA, length=49)
    assert first == again and less.activations < first.activations < longer.activations
    assert memory._build.cache_info().misses == 1 and memory._kept.cache_info().misses == 2


# ---------------------------------------------------------------- published figures


def test_seven_billion_weights_weigh_what_is_published():
    """Exact counts, 12.55 GiB in 16 bits, and half a bit or an eighth of one for the constants."""
    bill = memory_bill("Llama-2-7B", method="lora", targets=["q_proj", "v_proj"], length=16)
    assert (bill.trainable_parameters, bill.total_parameters) == (4_194_304, 6_742_609_920)
    assert bill.weights / GIB == pytest.approx(12.55, abs=0.005)
    four = {double: memory_bill("Llama-2-7B", length=16, double_quantization=double) for double in (True, False)}
    assert four[True].trainable_parameters == 19_988_480
    packed = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096
    bits = {double: 8 * bill.constants / packed for double, bill in four.items()}
    assert bits[False] == pytest.approx(0.5, abs=0.001) and bits[True] == pytest.approx(0.127, abs=0.001)


def test_65_billion_go_from_over_780_to_under_48_gigabytes():
    """QLoRA's claim: 16-bit weights and gradients with 32-bit AdamW, against 4 bits, checkpointing, paged state."""
    full = memory_bill("LLaMA-65B", method="full", optimizer="adamw_32bit", gradient_checkpointing=True)
    assert full.weights + full.gradients + full.optimizer_state > 780e9
    four = memory_bill("LLaMA-65B", rank=64, optimizer="paged_adamw_8bit", gradient_checkpointing=True)
    assert four.needs() < 48 * GIB


def test_8_bit_state_takes_a_quarter_and_paged_state_leaves_the_card():
    optimizers = ("adamw_32bit", "adamw_8bit", "paged_adamw_8bit")
    wide, eight, paged = (memory_bill(LLAMA, method="full", length=64, optimizer=name) for name in optimizers)
    assert 0.25 < eight.optimizer_state / wide.optimizer_state < 0.27
    assert paged.needs() == paged.total - paged.optimizer_state


# ---------------------------------------------------------------- bad input


def test_what_does_not_fit_is_refused_with_what_to_change():
    bill = memory_bill("Llama-2-7B", method="lora", batch=4, length=512)
    require_fit(bill, CARDS["A100 40 GB"])
    with pytest.raises(DeviceError, match=r"GiB too much\. First use method='qlora'"):
        require_fit(bill, CARDS["T4 16 GB"])
    require_fit(memory_bill("Llama-2-7B", gradient_checkpointing=True), CARDS["T4 16 GB"])
