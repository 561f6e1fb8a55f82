"""One training step on several processes, counted byte by byte: `torchrun --nproc_per_node 2 tests/several.py FOLDER`.

For each of SETTINGS, under DDP and FSDP2, every process writes FOLDER/<rank>.json. It counts what is there, and asks
`helpers.memory` nothing.
"""

import json
import os
import sys
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from test_memory import LLAMA, QWEN, real_model
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from transformers import AutoConfig

from helpers.memory import PRECISIONS
from tools.run import ROOT

SHIPPED = AutoConfig.from_pretrained(ROOT / "data" / "language_model")
SETTINGS = {
    "full": (LLAMA, dict(method="full", batch=2, length=32, precision="float32")),
    "full, 16 bits": (LLAMA, dict(method="full", batch=2, length=32)),
    "full, shipped": (SHIPPED, dict(method="full", batch=1, length=16)),
    "lora": (QWEN, dict(method="lora", batch=1, length=48, precision="float32")),
    "lora, 16 bits": (LLAMA, dict(method="lora", batch=2, length=32, rank=5)),  # no multiple of two processes
    "lora, shipped": (SHIPPED, dict(method="lora", batch=1, length=16, rank=16)),
    "qlora": (LLAMA, dict(method="qlora", batch=2, length=32, precision="float32")),
    "qlora, 16 bits": (QWEN, dict(method="qlora", batch=2, length=32, rank=16)),
    "qlora, shipped": (SHIPPED, dict(method="qlora", batch=1, length=16)),
}
WHOLE = {"c10d::_allgather_base_": 0, "c10d::_reduce_scatter_base_": 1}  # which argument is of all processes
ON_THEIR_WAY = ("UNSHARDED_PARAM", "UNSHARDED_GRAD", "ALL_GATHER", "REDUCE_SCATTER")


class Watch(FSDPMemTracker):
    """Looks after every operation, where PyTorch's own tracker looks at the most that a module ever holds."""

    most = moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        now = self.get_tracker_snapshot("current").get(torch.device("cpu"), {})
        self.most = max(self.most, sum(n for kind, n in now.items() if getattr(kind, "name", kind) in ON_THEIR_WAY))
        if func.name() in WHOLE:
            self.moved += args[WHOLE[func.name()]].nbytes
        return result


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def prepared(model, optimizer, sharding, precision):
    """What `accelerate launch` gives a script; on the CPU, accelerate makes DDP of FSDP in silence unless told so."""
    AcceleratorState._reset_state()
    mixed = {"float32": "no"}.get(precision, "bf16")
    accelerator = Accelerator(cpu=True, mixed_precision=mixed)
    if sharding == "full":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        if mixed != "no":
            plugin.set_mixed_precision(mixed)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator, *accelerator.prepare(model, optimizer)


def counted(model, options, sharding):
    """Bytes by part of one step, the loss, and the bytes that this process sent around."""
    adapters = options["method"] != "full"
    trained = [p for p in model.parameters() if p.requires_grad]
    accelerator, model, optimizer = prepared(
        model, torch.optim.AdamW(trained), sharding, options.get("precision", "bfloat16")
    )
    buckets, tracker = {}, None
    if sharding == "full":
        tracker = Watch(model, optimizer.optimizer)
        tracker.track_inputs(())
        tracker.__enter__()
    else:

        def count(state, bucket):
            buckets[bucket.buffer().untyped_storage().data_ptr()] = bucket.buffer().nbytes
            return allreduce_hook(state, bucket)

        model.register_comm_hook(None, count)
    ids = torch.randint(1, 900, (options["batch"], options["length"]), generator=torch.Generator().manual_seed(0))
    with accelerator.autocast():
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
    accelerator.backward(loss)
    optimizer.step()
    if tracker:
        tracker.__exit__(None, None, None)
        buffers = tracker.most
    else:
        own = {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
        buffers = sum(size for address, size in buckets.items() if address not in own)
    parameters = list(model.parameters())
    states = [m.quant_state for m in model.modules() if getattr(m, "quant_state", None) is not None]
    constants = [t for s in states for q in (s, s.state2) if q for t in (q.absmax, q.code)]
    constants += [s.offset for s in states if s.offset is not None]
    return {
        "weights": sum(local(p).nbytes for p in parameters if not (p.requires_grad and adapters)),
        "constants": sum(t.nbytes for t in constants),
        "adapters": sum(local(p).nbytes for p in parameters if p.requires_grad and adapters),
        "gradients": sum(local(p.grad).nbytes for p in parameters if p.grad is not None),
        "optimiser state": sum(local(v).nbytes for state in optimizer.state.values() for v in state.values()),
        "buffers": buffers,
        "loss": loss.item(),
        "moved": tracker.moved if tracker else sum(buckets.values()),
    }


if __name__ == "__main__":
    folder, found = Path(sys.argv[1]), {}
    models = {}
    for name, (config, options) in SETTINGS.items():
        for sharding in ("none", "full"):  # before there are processes, or only the first one would save its model
            own = folder / f"{name}, {sharding}, {os.environ['RANK']}"
            storage = PRECISIONS[options.get("precision", "bfloat16")]  # else FSDP2 leaves 4-bit weights whole
            models[name, sharding] = real_model(deepcopy(config), own, options, storage)[0]
    Accelerator(cpu=True)
    for (name, sharding), model in models.items():
        found[f"{name}, {sharding}"] = counted(model, SETTINGS[name][1], sharding)
    found["world"] = dist.get_world_size()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
