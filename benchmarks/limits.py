"""The limit, and what is between it and us: products, a profile, bytes read, a busy machine, and how cost grows."""

import subprocess
import sys
from timeit import repeat

import torch  # before helpers: what is not set for OpenMP must stay so
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import helpers
from benchmarks import FOLDER, Clock, main, memory, ours


def products(data, clock, *, side, **options):
    """A side of `ours` three times: undisturbed, with the operations of its products counted, and profiled."""
    counted, watched = FlopCounterMode(display=False), profile(activities=[ProfilerActivity.CPU])
    threads = torch.get_num_threads()
    for around in (clock, counted, watched):
        getattr(ours, side)(data, around, **options)
        torch.set_num_threads(1)  # what other threads compute is neither counted nor profiled
    torch.set_num_threads(threads)
    times = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
    spans = [event.time_range for event in watched.events()]
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    times["Python and the rest"] = max(0, whole - sum(times.values()))
    shares = [f"{name} {100 * times[name] / whole:.0f}" for name in sorted(times, key=times.get)[:-9:-1]]
    one, two = torch.randn(2, 2048, 2048).to(helpers.choose_machine().precision)
    rate, work = 2 * 2048**3 / min(repeat(lambda: one @ two, number=1)), counted.get_total_flops()
    return {"least": work / rate, "told": f"{', '.join(shares)}; {work / 1e9:,.0f} of {rate / 1e9:,.0f} G a second"}


def reading(data, clock):
    """Generation: what its steps must read, weights and cache, and how fast this machine reads."""
    space, read = ours.cells(data, "generation"), []
    weights = sum(p.nbytes for p in space["writer"].parameters())

    def count(model, asked, out):
        read.append(weights + sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers))

    space["writer"].register_forward_hook(count)
    with clock:
        space["ask"](space["writer"], space["judged"])
    big = torch.ones(2**28)
    rate, work = big.nbytes / min(repeat(big.sum, number=1)), sum(read)
    return {"least": work / rate, "told": f"{len(read)} steps; {work / 1e9:.1f} of {rate / 1e9:.1f} GB a second"}


def busy(data, clock, *, steps, policy):
    """A loop of LoRA on docstrings alone, then beside a process that never rests."""
    space, alone = ours.cells(data, "lora", steps=steps), Clock()
    space["teach"]("warm-up", steps=2)
    with alone:
        space["teach"]("alone")
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with clock:
            space["teach"]("busy")
    finally:
        burner.kill()
    return {"least": alone.found["seconds"], "told": f"of the speed alone, in {steps} steps"}


def probe(space, whole, before, texts=2_000, labels=12):
    """Seconds and MiB of notebook 1's embedding and fitting."""
    space["texts"], both = {"train": (3 * whole)[:texts]}, [Clock(), Clock()]
    answers = (list(space["targets"]["train"] % labels) * 3)[:texts]
    with both[0]:
        ours.execute(space, "01_feature_extraction", "embed", "few-labels")
    with both[1]:
        space["frozen_features"](space["last"]["train"], answers)
    found = {f"{name}, s": timer.found["seconds"] for name, timer in zip(("embedding", "fitting"), both)}
    return found | {"MiB": max(1.0, max(timer.found["peak_mib"] for timer in both) - before)}


def step(rank=16, prompt=0, tokens=80, width=0):
    """Seconds and MiB of a training step of four texts, of the small model or of a random one of this width."""
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
    if prompt:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt)
    shape = helpers.models.language_model_config()
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    shape.update({"hidden_size": width, "intermediate_size": 3 * width, **heads} if width else {})
    model = AutoModelForCausalLM.from_config(shape) if width else helpers.load_language_model(quiet=True)[0]
    model, ids = peft.get_peft_model(model, config).train(), torch.randint(100, 8000, (4, tokens))
    loss = lambda: model(input_ids=ids, labels=ids, use_cache=False).loss  # noqa: E731
    with helpers.choose_machine().autocast():
        found = {"step, s": min(repeat(lambda: loss().backward(), number=1, repeat=3))}
        found["MiB"] = sum(helpers.training_memory(model, loss).values())
    return found | ({"x": helpers.count_parameters(model).total / 1e6} if width else {})


def growth(data, clock, *, part, values):
    """Costs for growing values of one cause: {cost: [[value, cost], ...]}."""
    found, measure = {}, step
    if part in ("texts", "labels"):
        space = ours.cells(data, "features", task=str(FOLDER / "growth.csv"), train_examples=0)
        whole, before = space["texts"]["train"], memory()[1]
        measure = lambda **value: probe(space, whole, before, **value)  # noqa: E731
    for value in values:
        costs = measure(**{part: value})
        x = costs.pop("x", value)
        for name, cost in costs.items():
            found.setdefault(name, []).append([x, cost])
    return {"growth": found}


if __name__ == "__main__":
    main(globals())
