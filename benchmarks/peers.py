"""What people run instead, as the guides have it: same model, texts and steps, nothing of `helpers`."""

import tempfile
import zlib

import torch
import transformers

from benchmarks import JUDGED, accuracy, main, perplexity

LENGTH = 128  # in tokens, of what is padded to the maximum length: that to which our side cuts


def drawn(data, task, train_examples, seed):
    """Texts and targets of each split, {split: ...}."""
    splits = data["topics"][f"{task} {train_examples} {seed}"]
    return [{split: both[i] for split, both in splits.items()} for i in (0, 1)]


def embed(data, clock, **draw):
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    texts, targets = drawn(data, **draw)
    encoder = SentenceTransformer(data["encoder"], device="cpu")
    encoder.max_seq_length = LENGTH
    with clock:
        vectors = {split: encoder.encode(some, show_progress_bar=False) for split, some in texts.items()}
        probe = LogisticRegression(max_iter=1000).fit(vectors["train"], targets["train"])
        answers = {split: probe.predict(vectors[split]) for split in JUDGED}
    return accuracy(answers, targets)


def setfit(data, clock, *, iterations, **draw):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, targets = drawn(data, **draw)
    rows = Dataset.from_dict({"text": texts["train"], "label": targets["train"]})
    model = SetFitModel.from_pretrained(data["encoder"], device="cpu")
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), batch_size=16, num_epochs=1, num_iterations=iterations, seed=draw["seed"],
        save_strategy="no", report_to="none", show_progress_bar=False,
    )  # fmt: skip
    with clock:
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        answers = {split: model.predict(texts[split], use_labels=False) for split in JUDGED}
    return accuracy(answers, targets)


def train(model, rows, collate, *, style, batch, steps, rate, seed):
    """Either Trainer with its defaults, or PEFT's example style: a plain loop with AdamW; both in float32."""
    if style == "Trainer":
        arguments = transformers.TrainingArguments(
            output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate,
            seed=seed, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        transformers.Trainer(model, arguments, collate, rows).train()
        return
    loader = torch.utils.data.DataLoader(rows, shuffle=True, collate_fn=collate, batch_size=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    model.train()
    for _, inputs in zip(range(steps), loader):
        model(**inputs).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def topics(data, clock, *, technique, task, train_examples, style, seed, **how):
    import peft

    texts, targets = drawn(data, task, train_examples, seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(data["encoder"])
    collate, padding = transformers.default_data_collator, "max_length"
    if style == "PEFT":
        collate, padding = (lambda some: tokenizer.pad(some, return_tensors="pt")), False
    torch.manual_seed(seed)
    head = {"num_labels": 1 + max(targets["train"])}
    with clock:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(data["encoder"], **head)
        if technique != "everything":
            config = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "modules_to_save": ["pooler"]}
            model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **config))
        rows = [
            {**tokenizer(text, truncation=True, max_length=LENGTH, padding=padding), "labels": label}
            for text, label in zip(texts["train"], targets["train"])
        ]
        train(model, rows, collate, style=style, batch=16, seed=seed, **how)
    model.eval()
    with torch.no_grad():
        ask = lambda text: model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH)).logits  # noqa: E731
        return accuracy({split: [ask(text).argmax() for text in texts[split]] for split in JUDGED}, targets)


def ids_of(tokenizer, pair, length=None):
    """Prompt and reply as token ids, the prompt left out of the loss; padded to `length`, or not at all."""
    asked = tokenizer(f"{pair[0]}\n")["input_ids"]
    reply = [*tokenizer(pair[1], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    row = {"input_ids": asked + reply, "labels": [-100] * len(asked) + reply}
    row["attention_mask"] = [1] * len(row["labels"])
    fill = {"input_ids": tokenizer.pad_token_id, "labels": -100, "attention_mask": 0}
    return {k: (ids + [fill[k]] * ((length or 0) - len(ids)))[:length] for k, ids in row.items()}


def language(data, clock, *, technique, style, seed, **how):
    import peft

    tokenizer = transformers.AutoTokenizer.from_pretrained(data["language_model"])
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")
    if technique == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    options = {"dtype": torch.float32}
    if technique == "qlora":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    torch.manual_seed(seed)
    with clock:
        model = transformers.AutoModelForCausalLM.from_pretrained(data["language_model"], **options)
        if technique == "qlora":
            model = peft.prepare_model_for_kbit_training(model)
        model = peft.get_peft_model(model, config)
        rows = [ids_of(tokenizer, pair, LENGTH) for pair in data["docstrings"]["train"]]
        train(model, rows, transformers.default_data_collator, style=style, batch=8, seed=seed, **how)
    rows = {split: [ids_of(tokenizer, pair) for pair in data["docstrings"][split]] for split in JUDGED}
    return perplexity(model, rows)


def generation(data, clock, *, seed):
    tokenizer = transformers.AutoTokenizer.from_pretrained(data["language_model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(data["language_model"], dtype=torch.float32)
    answers = []
    with clock:
        for signature, _ in data["docstrings"]["test"]:
            ids = tokenizer(f"{signature}\n", return_tensors="pt")["input_ids"]
            made = model.generate(ids, max_new_tokens=96, do_sample=False)[0, ids.shape[1] :]
            answers.append(zlib.crc32(tokenizer.decode(made, skip_special_tokens=True).strip().encode()))
    return {"measure": "answers", "answers": answers}


if __name__ == "__main__":
    main(globals())
