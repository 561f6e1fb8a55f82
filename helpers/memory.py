"""The memory bill: what a training step needs, computed from a model's configuration, without weights.

The model is built on PyTorch's meta device by transformers and PEFT themselves, and one forward pass
runs with fake tensors: every operation happens, no number is computed. What autograd would keep for
the backward pass is counted as it passes by. Sources of the method: QLoRA (Dettmers and others 2023,
https://arxiv.org/abs/2305.14314) for the formats; the code of transformers, PEFT and bitsandbytes
for what is really stored. `tests/test_memory.py` holds every part against real training steps.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from .errors import DeviceError, ModelError, ParameterError
from .measuring import count_parameters
from .models import WORKS, check_architecture, positions_of, read_config, straighten, transformer_blocks
from .quantization import TYPES, check_kind, check_not_quantized
from .waiting import progress

GIB = 2**30
METHODS = ("full", "lora", "qlora")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARDINGS = ("none", "full")
OPTIMIZERS = ("adamw", "adamw_32bit", "adamw_8bit", "paged_adamw_8bit")
OPTIMIZER_BLOCK = 256  # bitsandbytes: one 32-bit scale for so many 8-bit values
SMALLEST_8BIT = 4096  # bitsandbytes: smaller tensors keep 32-bit state
CODE_TABLE = 4 * 256  # bytes of an 8-bit code table; a 4-bit one has 16 entries


def _shape(kind: type, width: int, inner: int, blocks: int, heads: int, kv_heads: int, **more: int) -> PreTrainedConfig:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks, "vocab_size": 32000}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 4096}
    return kind(**(shape | more))


_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 32768}
# Published shapes, from the papers and the config.json of each model.
MODELS = {
    "Llama-2-7B": _shape(LlamaConfig, 4096, 11008, 32, 32, 32),
    "Llama-2-13B": _shape(LlamaConfig, 5120, 13824, 40, 40, 40),
    "Llama-2-70B": _shape(LlamaConfig, 8192, 28672, 80, 64, 8),
    "LLaMA-65B": _shape(LlamaConfig, 8192, 22016, 80, 64, 64, max_position_embeddings=2048),
    "Mistral-7B": _shape(LlamaConfig, 4096, 14336, 32, 32, 8, max_position_embeddings=32768),
    "Qwen3-0.6B": _shape(Qwen3Config, 1024, 3072, 28, 16, 8, **_QWEN3),
}

# Memory that a process can use, in GiB: less than the number on the box. To be confirmed on each card.
CARDS = {
    "T4 16 GB": 14.7,
    "P100 16 GB": 15.9,
    "L4 24 GB": 22.0,
    "A100 40 GB": 39.4,
    "A100 80 GB": 79.1,
    "H100 80 GB": 79.1,
    "2 x T4 16 GB": 14.7,  # a notebook uses one of them
}
# An estimate: CUDA context, temporary tensors of a layer and of the optimiser, fragmentation.
RESERVE_GIB = 1.0


@dataclass(frozen=True)
class MemoryBill:
    """Bytes of one training step on each card by part, and what they belong to.

    `weights` includes quantised ones without their `constants`. `activations` is what is kept from
    the forward for the backward pass, without the `logits` and their 32-bit copies. With gradient
    checkpointing it holds the inputs of all blocks and the inside of the largest one. `buffers` is what
    only several cards need: gradients on their way, and weights gathered from the other cards.
    """

    weights: int
    constants: int
    adapters: int
    gradients: int
    optimizer_state: int
    activations: int
    logits: int
    paged: bool
    trainable_parameters: int
    total_parameters: int
    buffers: int = 0
    sharded: bool = False

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which a training run allocates them; buffers only where there are any."""
        names = ["weights", "constants", "adapters", "gradients", "optimizer_state", "activations", "logits"]
        names += ["buffers"] if self.buffers else []
        return {name.replace("optimizer_", "optimiser "): getattr(self, name) for name in names}

    def needs(self) -> int:
        """Bytes that must be on the card: all, less a paged optimiser state, which may move to the CPU's memory."""
        return self.total - (self.optimizer_state if self.paged else 0)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts().items() if size)
        return f"{self.total / GIB:.2f} GiB ({parts})"


def memory_bill(
    config: PreTrainedConfig | str | Path,
    *,
    method: str = "qlora",
    batch: int = 1,
    length: int = 512,
    rank: int = 8,
    targets: str | Sequence[str] = "all-linear",
    precision: str = "bfloat16",
    quantization: str = "nf4",
    double_quantization: bool = True,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    processes: int = 1,
    sharding: str = "none",
) -> MemoryBill:
    """Memory of one training step of a causal language model, by part, without building the model.

    Args:
        config: a `transformers` configuration, a local folder with a config.json, or a name in `MODELS`.
        method: "full" (all weights in `precision`, and gradients in the same type), "lora" (frozen
            weights in `precision`, adapters in float32), or "qlora" (linear layers of the blocks in
            4 bits, the rest in float32 as `prepare_model_for_kbit_training` leaves it).
        batch, length: texts in a batch of one process, and tokens in each, padded ones included (with a
            mask, as a batch of texts of several lengths has).
        rank, targets: of LoRA; targets are ends of module names, or "all-linear".
        precision: "float32", "bfloat16" or "float16": the type that matrix products run in
            (`torch.autocast` around the step, as `Trainer` does).
        quantization: "nf4" or "fp4", blocks of 64; with `double_quantization` the scales take 8 bits.
        optimizer: "adamw" (PyTorch's, state in the type of the weights), "adamw_32bit",
            "adamw_8bit" or "paged_adamw_8bit" (bitsandbytes').
        gradient_checkpointing: keep the input of each block only.
        processes: one on each card; the bill is that of one card.
        sharding: "none" (all of it on each card, with PyTorch's DDP if there are several) or "full"
            (FSDP2 as accelerate sets it up: each card keeps its part of every weight, gradient and
            state, trained weights in float32; the constants of 4-bit weights stay whole, and
            `bnb_4bit_quant_storage` must be the type of `precision`, or the weights do too).

    Not in it: temporary tensors, and what the CUDA context takes; see `RESERVE_GIB`.

    Raises:
        ParameterError: an unknown name, a number below 1, a length beyond the model's positions, sharding
            over one process, or of bitsandbytes' optimisers, which do not take sharded weights.
        ModelError: the configuration cannot be read or is that of a quantised model.
    """
    for name, value, allowed in (
        ("method", method, METHODS),
        ("precision", precision, PRECISIONS),
        ("quantization", quantization, TYPES),
        ("optimizer", optimizer, OPTIMIZERS),
        ("sharding", sharding, SHARDINGS),
    ):
        if value not in allowed:
            raise ParameterError(f"{name}={value!r}: expected one of {', '.join(allowed)}.")
    for name, value in (("batch", batch), ("length", length), ("rank", rank), ("processes", processes)):
        if not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r}: expected a whole number from 1.")
    if sharding == "full" and processes == 1:
        raise ParameterError("sharding='full', processes=1: one card has nobody to share with. Use sharding='none'.")
    if sharding == "full" and optimizer != "adamw":
        raise ParameterError(f"sharding='full', {optimizer=}: bitsandbytes' refuse sharded weights. Use 'adamw'.")
    config = _configuration(config)
    if method == "qlora":
        check_kind(config)
    positions = positions_of(config)
    if positions and length > positions:
        raise ParameterError(f"length={length}: this model has {positions} positions. Use shorter texts.")
    compute = PRECISIONS[precision]
    chosen = targets if isinstance(targets, str) else tuple(targets)
    four_bits = {"quant_type": quantization, "compress_statistics": double_quantization}
    model = _build(type(config), config.to_json_string(), method, compute, rank, chosen, **four_bits)
    packed, constants = _quantized_bytes(model, double_quantization)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad and not _is_packed(p)]
    if sharding == "full":
        packed = ceil(packed / processes)
        trained = [_shard(p, processes, torch.float32) for p in trained]
        frozen = [_shard(p, processes, p.dtype) for p in frozen]
        buffers = _gathered(model, compute)
    trained_bytes, frozen_bytes = (sum(p.nbytes for p in found) for found in (trained, frozen))
    if sharding == "none":
        buffers = trained_bytes if processes > 1 else 0  # DDP's buckets: a copy of all gradients
    adapters = 0 if method == "full" else trained_bytes
    count = count_parameters(model)
    plain, checkpointed, logits = _kept(model, batch, length, compute)
    return MemoryBill(
        weights=packed + frozen_bytes + trained_bytes - adapters,
        constants=constants,
        adapters=adapters,
        gradients=trained_bytes,
        optimizer_state=_optimizer_bytes(trained, optimizer),
        activations=checkpointed if gradient_checkpointing else plain,
        logits=logits,
        paged=optimizer.startswith("paged"),
        trainable_parameters=count.trainable,
        total_parameters=count.total,
        buffers=buffers,
        sharded=sharding == "full",
    )


def require_fit(bill: MemoryBill, card_gib: float) -> None:
    """Raise `DeviceError` if the bill and a reserve do not fit the card: by how much, and what to change."""
    over = bill.needs() / GIB + RESERVE_GIB - card_gib
    if over <= 0:
        return
    saving = {  # what each remedy could free at most
        "turn on gradient_checkpointing, or use a smaller batch or shorter texts": bill.activations + bill.logits,
        "use optimizer='paged_adamw_8bit'": 0 if bill.paged or bill.sharded else bill.optimizer_state,
        "use more cards": bill.weights + bill.gradients + bill.optimizer_state if bill.sharded else 0,
        "use method='qlora'": 0 if bill.constants else bill.weights + bill.gradients + bill.optimizer_state,
        "choose a smaller model": bill.weights if bill.constants else 0,
    }
    remedies = [what for what, freed in sorted(saving.items(), key=lambda item: -item[1]) if freed > 0.1 * over * GIB]
    raise DeviceError(
        f"this needs {bill.needs() / GIB:.1f} GiB and a reserve of {RESERVE_GIB:.1f}, the card has {card_gib:.1f}: "
        f"{over:.1f} GiB too much. First {'; then '.join(remedies)}."
    )


def _configuration(config: PreTrainedConfig | str | Path) -> PreTrainedConfig:
    source = str(config) if isinstance(config, str | Path) else type(config).__name__
    if isinstance(config, str) and config in MODELS:
        config = MODELS[config]
    elif isinstance(config, str | Path):
        if not (Path(config) / "config.json").is_file():
            raise ModelError(f"{config}: no config.json there, and no name in MODELS ({', '.join(MODELS)}).")
        config = read_config(config)
    check_architecture(config, source, writes=True)
    check_not_quantized(config, source)
    return config


def _is_packed(parameter: nn.Parameter | None) -> bool:
    return hasattr(parameter, "quant_type")


@lru_cache(maxsize=8)
def _build(
    kind: type, config: str, method: str, compute: torch.dtype, rank: int, targets: str | tuple, **four_bits: Any
) -> nn.Module:
    """The model on the meta device, ready to train. Kept, for it takes seconds (and 34 MB for 65 billion weights)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            kind.from_dict(json.loads(config)), dtype=compute, trust_remote_code=False
        )
        straighten(model)
        model.tie_weights()  # transformers 5.0 forgets it on the meta device, and embeddings would count twice
    if method == "qlora":
        _to_four_bits(model, compute_dtype=compute, **four_bits)
        for parameter in model.parameters():
            if not _is_packed(parameter):
                parameter.data = parameter.data.float()
        named = dict(model.named_parameters())
        for name, parameter in named.items():  # the first forward pass rounds the biases of 4-bit layers
            if name.endswith(".bias") and _is_packed(named.get(f"{name.removesuffix('bias')}weight")):
                parameter.data = parameter.data.to(compute)
    if method != "full":
        from peft import LoraConfig, get_peft_model

        from .adapters import check_lora

        model.requires_grad_(False)
        wanted = targets if isinstance(targets, str) else list(targets)
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=wanted, task_type="CAUSAL_LM")
        check_lora(model, lora)
        with torch.device("meta"):
            model = get_peft_model(model, lora)
    return model.train()


def _to_four_bits(model: nn.Module, **options: Any) -> None:
    """Put bitsandbytes' 4-bit layers in place of the linear layers within the blocks, still on the meta device."""
    from bitsandbytes.nn import Linear4bit

    class Meta4bit(Linear4bit):
        """Casts as the real layer does, and as the real layer keeps nothing for the backward pass but its weights."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _Multiply.apply(x.to(self.compute_dtype), self.out_features).to(x.dtype)

    model.is_loaded_in_4bit = True  # what PEFT looks at
    for block in transformer_blocks(model):
        for name, old in [(n, m) for n, m in block.named_modules() if type(m) is nn.Linear]:
            new = Meta4bit(old.in_features, old.out_features, bias=old.bias is not None, device="meta", **options)
            block.set_submodule(name, new)


class _Multiply(torch.autograd.Function):
    """Shape and type of a product with 4-bit weights."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, outputs: int) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], outputs)


def _quantized_bytes(model: nn.Module, double: bool) -> tuple[int, int]:
    """Bytes of packed weights, and of all their constants, as bitsandbytes stores them."""
    packed = constants = 0
    for parameter in model.parameters():
        if _is_packed(parameter):
            packed += ceil(parameter.numel() / 2)
            blocks = ceil(parameter.numel() / 64)
            # One byte a block, a 32-bit scale for 256 of them, their 32-bit mean, an 8-bit table; or 4 bytes a block.
            constants += blocks + 4 * ceil(blocks / 256) + 4 + CODE_TABLE if double else 4 * blocks
            constants += 4 * 16  # the table of the 4-bit type
    return packed, constants


def _optimizer_bytes(trained: list[nn.Parameter], optimizer: str) -> int:
    """Bytes of the state after the first step."""
    if optimizer == "adamw":
        return sum(2 * p.nbytes + 4 for p in trained)  # two averages, and a counter
    state = 0
    for p in trained:
        if optimizer == "adamw_32bit" or p.numel() < SMALLEST_8BIT:
            state += 8 * p.numel()
        else:
            state += 2 * (p.numel() + 4 * ceil(p.numel() / OPTIMIZER_BLOCK))
    eight = optimizer != "adamw_32bit" and any(p.numel() >= SMALLEST_8BIT for p in trained)
    return state + (2 * CODE_TABLE if eight else 0)


def _shard(parameter: nn.Parameter, processes: int, dtype: torch.dtype) -> torch.Tensor:
    """One card's part: rows, as many on each card, so that the last ones may be padding."""
    rows, *row = parameter.shape
    return torch.empty(ceil(rows / processes), *row, dtype=dtype, device="meta")


def _gathered(model: nn.Module, compute: torch.dtype) -> int:
    """Bytes of the whole weights, and of their gradients, that FSDP2 holds at once on each card.

    A unit is a block, the embedding, or the output layer. It is there twice, as it arrives and as it is used, or used
    while the next one arrives; on the way back, so are the gradients of what is trained in a block.
    """

    def size(unit: nn.Module, kinds: tuple[bool, ...] = (False, True)) -> int:
        each = ((p.numel(), p.requires_grad, _is_packed(p)) for p in unit.parameters())
        return sum(ceil(n / 2) if four else n * compute.itemsize for n, trains, four in each if trains in kinds)

    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tied = last is None or first.weight is last.weight
    block, gradients = max((size(block), size(block, (True,))) for block in transformer_blocks(model))
    ends = max(size(end) for end in (first, last) if end is not None)
    forward = 2 * max(block, ends) + tied * min(block, ends)  # tied, it stays from the first use to the last
    backward = max(2 * (block + gradients), 2 * ends + (0 if tied else size(last, (True,))))
    return max(forward, backward)


class _Padded(TorchDispatchMode):
    """Says no where a model asks of its mask whether all tokens are real, as OPT did before transformers 5.23."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        asks = func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool
        return False if asks else func(*args, **(kwargs or {}))


@lru_cache(maxsize=32)
def _kept(model: nn.Module, batch: int, length: int, compute: torch.dtype) -> tuple[int, int, int]:
    """Bytes that autograd keeps: without checkpointing, with it, and for the logits.

    With gradient checkpointing that is the input of each block, and the inside of the largest one.
    """
    size = batch * length * model.config.vocab_size
    kept: dict[nn.Module | str | None, int] = defaultdict(int)  # by block; None: outside of them
    inputs: dict[nn.Module, int] = {}
    place: list[nn.Module | None] = [None]
    seen: dict[int, torch.UntypedStorage] = {}  # the storages are held, or a freed one's number would come again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = storage
            logits = place[0] is None and tensor.numel() == size and tensor.shape[-1] == model.config.vocab_size
            kept["logits" if logits else place[0]] += storage.nbytes()
        return tensor

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        place[0], inputs[block] = block, (args[0] if args else kwargs["hidden_states"]).nbytes

    def leave(*_: object) -> None:
        place[0] = None
        bar.update()

    blocks = list(transformer_blocks(model))
    bar = progress(what="counting", total=len(blocks))
    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    # On the meta device autocast does nothing, so every parameter and buffer gets a fake twin on the CPU for this pass.
    fake, cpu = FakeTensorMode(), torch.device("cpu")
    twins: dict[str, torch.Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not _is_packed(tensor):
            twin = fake.fake_tensor_converter.from_meta_and_device(fake, tensor.detach(), cpu)
            twins[name] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
    try:
        with (
            fake,
            _Padded(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=compute, enabled=compute != torch.float32),
        ):
            ids = torch.zeros(batch, length, dtype=torch.long)
            mask = torch.ones_like(ids)
            parameters = [twin for twin in twins.values() if isinstance(twin, nn.Parameter)]
            seen |= {t.untyped_storage()._cdata: t.untyped_storage() for t in (ids, mask, *parameters)}
            given = {"input_ids": ids, "attention_mask": mask, "labels": ids, "use_cache": False}
            functional_call(model, twins, kwargs=given)
    except DataDependentOutputException:
        raise ModelError(
            f"a model of type {model.config.model_type!r} looks at values on its way, and a bill without weights has "
            f"none. Use a newer transformers, or a model such as {WORKS}."
        ) from None
    finally:
        bar.close()
        for handle in handles:
            handle.remove()
    outside, logits = kept.pop(None, 0), kept.pop("logits", 0)
    inside = max(max(kept[block] - inputs[block], 0) for block in blocks)
    return outside + sum(kept.values()), outside + sum(inputs.values()) + inside, logits
