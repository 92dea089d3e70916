"""Mixup of texts under the Hugging Face Trainer: embedded words are mixed, padding and attention masks are seen to."""

import tempfile

import torch
import transformers

from omnimix.integrations.transformers import MixTrainer

WORDS = ["[PAD]", "good", "fine", "great", "bad", "dull", "awful", "a", "film", "the", "plot", "was", "and", "cast"]


def review(generator, noise):
    """A made-up review of 4 to 8 words, labelled by its tone but for a share `noise`, which is labelled at random."""
    tone = int(torch.randint(2, (1,), generator=generator))
    words = torch.randint(7, len(WORDS), (int(torch.randint(3, 8, (1,), generator=generator)),), generator=generator)
    opinion = torch.randint(1 + 3 * tone, 4 + 3 * tone, (1,), generator=generator)
    wrong = float(torch.rand(1, generator=generator)) < noise
    label = int(torch.randint(2, (1,), generator=generator)) if wrong else tone
    return {"input_ids": torch.cat((words, opinion)).tolist(), "labels": label}


def pad(rows):
    """What a tokenizer's DataCollatorWithPadding does."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    train, test = ([review(generator, noise) for _ in range(512)] for noise in (0.2, 0.0))
    for mixing in ("erm", "mixup", "manifold-mixup"):
        transformers.set_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        trainer = MixTrainer(
            model=transformers.BertForSequenceClassification(config),
            args=transformers.TrainingArguments(
                tempfile.mkdtemp(), per_device_train_batch_size=16, num_train_epochs=4, learning_rate=3e-3,
                save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
            ),
            data_collator=pad,
            train_dataset=train,
            eval_dataset=test,
            compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids).mean()},
            mixing=mixing,
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        print(f"{mixing}: accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
