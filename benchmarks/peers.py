"""What people run instead, as the guides have it: same model, texts and steps, nothing of `helpers`."""

import random
import tempfile
import zlib

import numpy as np
import torch

from benchmarks import key_of, main, perplexity

SPLITS = ("test", "test_shifted")


def accuracy(answers, targets):
    return 100 * float((np.asarray(answers) == np.asarray(targets)).mean())


def sentence_transformers(data, clock, *, task, train_examples, seed):
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    drawn = data["topics"][key_of(task, train_examples, seed)]
    encoder = SentenceTransformer(data["encoder"], device="cpu")
    encoder.max_seq_length = 128
    splits = [split for split in drawn if split != "labels"]
    with clock:
        vectors = {split: encoder.encode(drawn[split][0], show_progress_bar=False) for split in splits}
        probe = LogisticRegression(max_iter=1000).fit(vectors["train"], drawn["train"][1])
        answers = {split: probe.predict(vectors[split]) for split in SPLITS if split in splits}
    return {split: accuracy(found, drawn[split][1]) for split, found in answers.items()}


def setfit(data, clock, *, task, train_examples, seed, iterations, few=True):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    drawn = data["topics"][key_of(task, train_examples, seed)]
    texts, labels = drawn["train"]
    with clock:
        model = SetFitModel.from_pretrained(data["encoder"], device="cpu")
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), batch_size=16, num_epochs=1, num_iterations=iterations, seed=seed,
            save_strategy="no", report_to="none", show_progress_bar=False,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    return {split: accuracy(model.predict(drawn[split][0], use_labels=False), drawn[split][1]) for split in SPLITS}


def classifier(data, drawn, technique):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(data["encoder"], num_labels=drawn["labels"])
    if technique == "everything":
        return model
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "modules_to_save": ["pooler"]}
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **config))


def score(model, tokenizer, drawn):
    """Accuracy on the tests; not timed."""
    found = {}
    for split in SPLITS:
        texts, targets = drawn[split]
        with torch.no_grad():
            parts = (tokenizer(texts[i : i + 64], padding=True, return_tensors="pt") for i in range(0, len(texts), 64))
            found[split] = accuracy(torch.cat([model.eval()(**part).logits for part in parts]).argmax(1), targets)
    return found


def train(model, rows, *, steps, batch, rate, seed):
    """The usual recipe: Trainer with its defaults, on rows padded to the maximum length, in float32."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=batch, learning_rate=rate,
        seed=seed, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, default_data_collator, rows).train()


def loop(model, rows, collate, *, steps, batch, rate, seed):
    """PEFT's example style: AdamW, a rate that falls in a line, a plain loop in float32."""
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(rows, shuffle=True, collate_fn=collate, batch_size=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    model.train()
    for _, inputs in zip(range(steps), loader):
        model(**inputs).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def topics(data, clock, *, technique, task, train_examples, steps, seed, style="Trainer"):
    from datasets import Dataset
    from transformers import AutoTokenizer

    drawn = data["topics"][key_of(task, train_examples, seed)]
    tokenizer = AutoTokenizer.from_pretrained(data["encoder"])
    how = {"steps": steps, "batch": 16, "rate": 5e-4 if technique == "everything" else 1e-2, "seed": seed}
    padding = {"padding": "max_length"} if style == "Trainer" else {}
    torch.manual_seed(seed)
    with clock:
        model = classifier(data, drawn, technique)
        rows = Dataset.from_dict(dict(zip(("text", "labels"), drawn["train"])))
        cut = lambda some: tokenizer(some["text"], truncation=True, max_length=128, **padding)  # noqa: E731
        rows = rows.map(cut, batched=True, remove_columns=["text"])
        if style == "Trainer":
            train(model, rows, **how)
        else:
            loop(model, rows, lambda some: tokenizer.pad(some, padding="longest", return_tensors="pt"), **how)
    return score(model, tokenizer, drawn)


def ids_of(tokenizer, pair, length=None):
    """Prompt and reply as token ids, the prompt left out of the loss; padded to `length`, or not at all."""
    asked = tokenizer(f"{pair[0]}\n")["input_ids"]
    reply = tokenizer(pair[1], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids, labels = (asked + reply)[:length], ([-100] * len(asked) + reply)[:length]
    more = (length or len(ids)) - len(ids)
    mask = [1] * len(ids) + [0] * more
    return {
        "input_ids": ids + [tokenizer.pad_token_id] * more,
        "attention_mask": mask,
        "labels": labels + [-100] * more,
    }


def language(data, clock, *, technique, steps, seed):
    import peft
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, default_data_collator

    tokenizer = AutoTokenizer.from_pretrained(data["language_model"])
    pairs, options = data["docstrings"], {"dtype": torch.float32}
    if technique == "qlora":
        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, **four, bnb_4bit_compute_dtype=torch.bfloat16
        )
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")
    if technique == "prompt":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    how = {"steps": steps, "batch": 8, "rate": 3e-1 if technique == "prompt" else 8e-3, "seed": seed}
    torch.manual_seed(seed)
    with clock:
        model = AutoModelForCausalLM.from_pretrained(data["language_model"], **options)
        if technique == "qlora":
            model = peft.prepare_model_for_kbit_training(model)
        model = peft.get_peft_model(model, config)
        rows = Dataset.from_list([{"signature": one, "docstring": two} for one, two in pairs["train"]])
        rows = rows.map(lambda row: ids_of(tokenizer, list(row.values()), 128), remove_columns=rows.column_names)
        if technique == "prompt":
            loop(model, rows, default_data_collator, **how)
        else:
            train(model, rows, **how)
    return perplexity(model, [ids_of(tokenizer, pair) for pair in pairs["test"]], tokenizer.pad_token_id)


def generation(data, clock, *, seed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data["language_model"])
    model = AutoModelForCausalLM.from_pretrained(data["language_model"], dtype=torch.float32)
    answers = []
    with clock:
        for signature, _ in data["docstrings"]["test"]:
            asked = tokenizer(f"{signature}\n", return_tensors="pt").to(model.device)
            asked.pop("token_type_ids", None)
            made = model.generate(**asked, max_new_tokens=96, do_sample=False)[0, asked["input_ids"].shape[1] :]
            answers.append(zlib.crc32(tokenizer.decode(made, skip_special_tokens=True).strip().encode()))
    return {"answers": answers}


SIDES = {
    "sentence_transformers": sentence_transformers, "setfit": setfit, "topics": topics, "language": language,
    "generation": generation,
}  # fmt: skip

if __name__ == "__main__":
    random.seed(0)
    main(SIDES)
