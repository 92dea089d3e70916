import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om

transformers = pytest.importorskip("transformers", reason="needs transformers")
pytest.importorskip("accelerate", reason="needs accelerate")
from omnimix.integrations.transformers import MixCollator, MixInputs, MixTrainer, mixed_loss  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("transformers").setLevel(logging.ERROR)

G = torch.Generator().manual_seed(0)
TEXTS = [
    {"input_ids": torch.randint(1, 50, (int(n),), generator=G).tolist(), "labels": int(n) % 3}
    for n in torch.randint(3, 9, (20,), generator=G)
]
IMAGES = [{"pixel_values": torch.randn(1, 8, 8, generator=G), "labels": i % 3} for i in range(20)]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}


def pad(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": ids * 0, "labels": labels}


def fill(model):
    """Weights from a stream of their own, so that tests do not depend on one another."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return model


def bert(dropout=0.0, **more):
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return fill(
        transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **SMALL, **rates, **more))
    )


def vit():
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.ViTConfig(**SMALL, **rates, image_size=8, patch_size=4, num_channels=1)
    return fill(transformers.ViTForImageClassification(config))


def arguments(folder, **options):
    usual = {"num_train_epochs": 2, "save_strategy": "no", "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    return transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **{**usual, **options}
    )


def text_trainer(folder, mixing, model=None, *, parameters=None, task=None, callbacks=None, **options):
    return MixTrainer(
        model or bert(),
        arguments(folder, **options),
        data_collator=pad,
        train_dataset=TEXTS,
        eval_dataset=TEXTS,
        mixing=mixing,
        mixing_parameters=parameters,
        task=task,
        callbacks=callbacks,
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def mixed(places, lam=0.7):
    """Each row with the next one, at a fixed share."""

    class Next(om.RandomPairing):
        def partners(self, batch, generator):
            return torch.arange(len(batch)).roll(-1).unsqueeze(1)

    return om.Mix(Next(), om.Constant(lam), places=places)


def by_hand(model, batch, lam, layer):
    """Layer by layer: own masks below the place of mixing, joint masks above it; layer -1 mixes the words."""
    partner = torch.arange(len(batch["labels"])).roll(-1)
    own = batch["attention_mask"].bool()
    both = own | own[partner]

    def blend(h):
        return lam * h + (1 - lam) * h[partner]

    encoder = model.bert
    words = encoder.embeddings.word_embeddings(batch["input_ids"]) * own.unsqueeze(2)
    h = encoder.embeddings(inputs_embeds=blend(words) if layer == -1 else words)
    for i, block in enumerate(encoder.encoder.layer):
        mask = both if i > layer else own
        h = block(h, mask[:, None, None, :].expand(-1, 1, h.shape[1], -1))
        h = blend(h) if i == layer else h
    output = model.classifier(encoder.pooler(h))
    y = batch["labels"]
    return lam * F.cross_entropy(output, y) + (1 - lam) * F.cross_entropy(output, y[partner])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("place", "layer"), [("input", -1), ("bert.encoder.layer.0", 0), ("bert.encoder.layer.1", 1)])
def test_a_mixed_sequence_attends_to_the_words_of_both(tmp_path, place, layer, attention):
    model = bert(attn_implementation="sdpa").train()
    oracle = by_hand(model, pad(TEXTS[:4]), 0.7, layer)
    model = bert(attn_implementation=attention).train()
    trainer = text_trainer(tmp_path, mixed((place,)), model)
    trainer.state.max_steps = 1
    trainer.set_up_mixing()
    batch = pad(TEXTS[:4])
    assert len(set(batch["attention_mask"].sum(dim=1).tolist())) > 1
    assert torch.allclose(trainer.compute_loss(model, batch), oracle, atol=1e-5)
    assert not model._forward_pre_hooks
    plain = model.eval()(**batch).loss
    assert torch.allclose(trainer.compute_loss(model, batch), plain)
    assert not torch.allclose(plain, oracle, atol=1e-3)


def test_the_padding_of_a_batch_does_not_matter(tmp_path):
    trainer = text_trainer(tmp_path, mixed(("input",)))
    trainer.state.max_steps = 1
    trainer.set_up_mixing()
    model, batch = trainer.model.train(), pad(TEXTS[:4])
    wider = {name: F.pad(t, (0, 3)) if t.ndim == 2 else t for name, t in batch.items()}
    assert torch.allclose(trainer.compute_loss(model, batch), trainer.compute_loss(model, wider), atol=1e-6)


@pytest.mark.parametrize("name", ["mixup", "manifold-mixup", "regmixup", "decoupled-mixup", "early-stopped-mixup"])
def test_methods_train_and_evaluation_is_the_models_own(tmp_path, name):
    trainer = text_trainer(tmp_path, name)
    before = weights(trainer.model)
    trainer.train()
    assert trainer.mixing.steps_done == 10
    assert not torch.equal(before, weights(trainer.model))
    model = trainer.model.eval()
    plain = torch.stack([model(**pad(TEXTS[i : i + 8])).loss * len(TEXTS[i : i + 8]) for i in (0, 8, 16)]).sum() / 20
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(plain), abs=1e-5)


def test_plain_training_is_the_trainers_own(tmp_path):
    own = transformers.Trainer(bert(), arguments(tmp_path), data_collator=pad, train_dataset=TEXTS)
    own.train()
    ours = text_trainer(tmp_path, "erm", gradient_accumulation_steps=1)
    ours.train()
    assert torch.allclose(weights(own.model), weights(ours.model), atol=1e-5)


def test_a_schedule_counts_training_batches_under_accumulation(tmp_path):
    trainer = text_trainer(tmp_path, "early-stopped-mixup", gradient_accumulation_steps=2, num_train_epochs=4)
    trainer.train()
    assert trainer.mixing.steps_done == 20
    assert trainer.mixing.switch == round(0.8 * trainer.state.max_steps * 2)


def test_accumulated_batches_weigh_as_one(tmp_path):
    def train(size, accumulate):
        options = {"num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd"}
        trainer = text_trainer(
            tmp_path, "erm", per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, **options
        )
        trainer.train_dataset = TEXTS[:16]
        trainer.train()
        return weights(trainer.model)

    assert torch.allclose(train(8, 1), train(4, 2), atol=1e-6)
    assert not torch.allclose(train(8, 1), train(4, 1), atol=1e-6)


@pytest.mark.parametrize(("name", "model"), [("mixup", bert), ("manifold-mixup", lambda: bert(dropout=0.1))])
def test_a_run_resumed_from_a_checkpoint_is_the_run_undisturbed(tmp_path, name, model):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 7

    saving = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    whole = text_trainer(tmp_path / "whole", name, model(), **saving)
    whole.train()
    text_trainer(tmp_path / "cut", name, model(), callbacks=[Stop()], **saving).train()
    again = text_trainer(tmp_path / "cut", name, model(), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6"))
    assert torch.equal(weights(again.model), weights(whole.model))
    assert again.mixing.steps_done == whole.mixing.steps_done == 15
    (tmp_path / "cut" / "checkpoint-6" / "omnimix-0.safetensors").unlink()
    with pytest.warns(UserWarning, match="the mixing starts afresh"):
        text_trainer(tmp_path / "cut", name, model(), **saving).train(str(tmp_path / "cut" / "checkpoint-6"))


@pytest.mark.parametrize("name", ["cutmix", "fmix", "manifold-mixup"])
def test_images_under_mix_trainer(tmp_path, name):
    trainer = MixTrainer(vit(), arguments(tmp_path), train_dataset=IMAGES, mixing=name)
    before = weights(trainer.model)
    trainer.train()
    assert not torch.equal(before, weights(trainer.model))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callback_mixes_training_batches_only(tmp_path, workers):
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        seen.append(labels)
        found = mixed_loss(outputs, labels, num_items_in_batch)
        assert torch.allclose(found, F.cross_entropy(outputs["logits"], labels), atol=1e-6)
        return found

    trainer = transformers.Trainer(
        vit(),
        arguments(tmp_path, eval_strategy="epoch", dataloader_num_workers=workers, num_train_epochs=1),
        train_dataset=IMAGES,
        eval_dataset=IMAGES[:8],
        compute_loss_func=loss,
        callbacks=[MixInputs(om.cutmix, num_labels=3, alpha=1.0)],
    )
    trainer.train()
    assert [y.shape for y in seen] == [(4, 3)] * 5 + [(8,)]
    assert all(torch.allclose(y.sum(dim=1), torch.ones(4)) for y in seen[:5])


def test_the_collator_keeps_what_it_does_not_mix():
    collate = MixCollator(
        transformers.default_data_collator, om.mixup, num_labels=3, lam=0.25, partner=torch.tensor([1, 0])
    )
    batch = collate([{**IMAGES[i], "number": i} for i in (0, 1)])
    assert torch.allclose(batch["pixel_values"][0], 0.25 * IMAGES[0]["pixel_values"] + 0.75 * IMAGES[1]["pixel_values"])
    assert batch["labels"].tolist() == [[0.25, 0.75, 0.0], [0.75, 0.25, 0.0]]
    assert batch["number"].tolist() == [0, 1]


def test_regression_and_multilabel_heads_are_recognised(tmp_path):
    one = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, **{**SMALL, "num_labels": 1})
    )
    assert isinstance(text_trainer(tmp_path, "mixup", one).mixing_task, om.Regression)
    many = bert(problem_type="multi_label_classification")
    assert isinstance(text_trainer(tmp_path, "mixup", many).mixing_task, om.MultiLabel)
    loss = mixed_loss({"logits": torch.tensor([[1.0], [2.0]])}, torch.tensor([0.0, 0.0]), 4)
    assert float(loss) == 1.25


def test_swad_follows_evaluation_and_leaves_the_mean_weights(tmp_path):
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            seen.append(weights(model).clone())

    options = {"parameters": {"patience": 1, "ratio": 1e9}, "callbacks": [Watch()], "num_train_epochs": 3}
    trainer = text_trainer(tmp_path, "swad", eval_strategy="epoch", **options)
    trainer.train()
    assert len(seen) == 15
    assert torch.allclose(weights(trainer.model), torch.stack(seen).mean(dim=0), atol=1e-6)
    assert not torch.allclose(weights(trainer.model), seen[-1], atol=1e-4)
    trainer.evaluate()  # after training nothing is told any more
    assert trainer.mixing.steps_done == 15


def test_methods_see_the_training_set_again_and_the_optimiser(tmp_path):
    class Looks(om.ERM):
        def follow(self, optimizer):
            self.rate = optimizer.param_groups[0]["lr"]

        def after_training(self, model, batches):
            with torch.no_grad():
                self.shapes = [tuple(model(batch.x)["logits"].shape) for batch in batches]

    trainer = MixTrainer(vit(), arguments(tmp_path, num_train_epochs=1), train_dataset=IMAGES, mixing=Looks())
    trainer.train()
    assert trainer.mixing.shapes == [(4, 3)] * 5
    assert 0 < trainer.mixing.rate <= 1e-3


def run(folder, mixing, model=None, **options):
    text_trainer(folder, mixing, model, **options).train()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: run(f, "mixup", label_smoothing_factor=0.1), "leave out label_smoothing_factor"),
        (lambda f: run(f, "c-mixup"), "draws partners from the whole training set"),
        (lambda f: run(f, "swad"), "SWAD follows the validation loss: validate"),
        (lambda f: run(f, "sam"), "SAM makes more of a step"),
        (lambda f: run(f, "cutmix"), "mix tables and trees with mixup"),
        (lambda f: run(f, om.Mixup(), parameters={"alpha": 1.0}), "a Method that has them"),
        (lambda f: run(f, "manifold-mixup", parameters={"taps": ["bert.layers"]}), "tap 'bert.layers' is not a module"),
        (
            lambda f: run(
                f, "manifold-mixup", parameters={"taps": ["bert.encoder.layer.0"]}, gradient_checkpointing=True
            ),
            "under gradient checkpointing",
        ),
        (
            lambda f: run(
                f,
                "mixup",
                transformers.GPT2ForSequenceClassification(
                    transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, pad_token_id=0)
                ),
            ),
            "is a decoder",
        ),
        (lambda f: MixCollator(pad, om.mixup, 3)(TEXTS[:4]), "texts are mixed by MixTrainer"),
        (lambda f: MixCollator(lambda rows: {"pixel_values": torch.zeros(1)}, om.mixup)([]), "needs 'labels'"),
    ],
)
def test_mistakes_are_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_global_random_state_is_left_alone(tmp_path):
    trainer = text_trainer(tmp_path, "mixup")
    trainer.state.max_steps = 1
    trainer.set_up_mixing()
    model = trainer.model.train()
    before = torch.get_rng_state()
    trainer.compute_loss(model, pad(TEXTS[:4]))
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(model, nn.Module)
