"""Encoders and classifiers of transformers, from tiny random weights in a local folder."""

import json

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from omnimix.corpora.discover import finetune  # noqa: E402
from omnimix.corpora.discover.embed import Encoder, pooled  # noqa: E402
from omnimix.corpora.discover.finetune import TransformerClassifier  # noqa: E402
from omnimix.corpora.discover.taxonomy import Taxonomy, TaxonomyClassifier, agreement  # noqa: E402

from .texts import FILLER, FORMATS, TOPICS, documents  # noqa: E402

TOPIC = Taxonomy("topic", list(TOPICS))


def small(**rest):
    return transformers.BertConfig(
        vocab_size=120, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, **rest,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with random weights and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp("encoder")
    words = sorted({w for text in (*TOPICS.values(), *FORMATS.values(), FILLER) for w in text.split()})
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(small()).save_pretrained(path)
    return path


def test_encoder_rows_do_not_depend_on_their_batch(folder):
    given = [one["text"][: 20 + 9 * i] for i, one in enumerate(documents(7))]
    x = Encoder(folder, batch=3)(given)
    assert x.shape == (7, 24)
    assert x.dtype == np.float32
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    for row, text in zip(x, given, strict=True):
        assert Encoder(folder)([text])[0] == pytest.approx(row, abs=1e-5)
    first = Encoder(folder, pooling="cls")(given)
    assert not np.allclose(first, x, atol=1e-2)
    again = Encoder.from_state(json.loads(json.dumps(Encoder(folder, pooling="cls").state_dict())))
    assert np.array_equal(again(given), first)


def test_a_fingerprint_does_not_change_with_use_but_with_weights_and_words(folder):
    from omnimix.corpora.annotate import fingerprint
    from omnimix.corpora.discover.regroup import Groups

    given = documents(4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        used, fresh = Encoder(folder), Encoder(folder)
    groups = [Groups(np.eye(2, 24, dtype=np.float32), embedder=one) for one in (used, fresh)]
    groups[0].annotate(given)
    assert fingerprint(groups[0]) == fingerprint(groups[1])
    used.length = 7
    assert fingerprint(groups[0]) != fingerprint(groups[1])
    used.length = fresh.length
    used.tokenizer.add_tokens(["new"])
    assert fingerprint(groups[0]) != fingerprint(groups[1])
    labelled = TaxonomyClassifier(TOPIC, TransformerClassifier(small(), 3, tokenizer=folder))
    before = fingerprint(labelled)
    labelled.model.probabilities([one["text"] for one in given])
    assert fingerprint(labelled) == before
    next(labelled.model.model.parameters()).data[0, 0] += 1
    assert fingerprint(labelled) != before


def test_pooling_leaves_padding_out():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pooled(hidden, mask, "mean").tolist() == [[1, 2], [9, 10]]
    assert pooled(hidden, mask, "cls").tolist() == [[0, 1], [8, 9]]


def test_the_pooling_of_sentence_transformers_is_read(folder, tmp_path):
    import shutil

    path = tmp_path / "sentence"
    shutil.copytree(folder, path)
    assert Encoder(path).pooling == "mean"
    settings = path / "1_Pooling" / "config.json"
    settings.parent.mkdir()
    settings.write_text(
        json.dumps({"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "include_prompt": True})
    )
    assert Encoder(path).pooling == "cls"
    settings.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling by pooling_mode_max_tokens"):
        Encoder(path)
    (path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match="layers Dense"):
        Encoder(path)
    with pytest.raises(ValueError, match="there is no folder"):
        Encoder(tmp_path / "nowhere")


def classifier(folder, **rest):
    settings = {"batch": 8, "at_once": 8, "lr": 1e-2, "epochs": 10, **rest}
    return TransformerClassifier(folder, 3, **settings)


def test_fine_tuning_learns_and_is_saved(folder, tmp_path):
    given, fresh = documents(128, noise=0.3), documents(60, seed=1, noise=0.3)
    y, z = (TOPIC.soft([one["topic"] for one in part]) for part in (given, fresh))
    model = TaxonomyClassifier(TOPIC, classifier(folder))
    before = torch.random.get_rng_state()
    model.fit(given, y, validation=(fresh, z), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    found = agreement(TOPIC, model.probabilities(fresh), z)
    assert found.accuracy > 0.9
    # the epoch whose worst label was best is the one that stays
    assert len(model.model.worst) == 10
    assert found.worst == max(model.model.worst)
    model.save(tmp_path / "topic")
    again = TaxonomyClassifier.load(tmp_path / "topic")
    assert again.probabilities(fresh) == pytest.approx(model.probabilities(fresh), abs=1e-6)
    assert again.model.lr == model.model.lr
    names = {file.name for file in (tmp_path / "topic" / "model").iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_the_epoch_that_was_best_on_validation_stays(folder, monkeypatch):
    seen = []

    def falling(probabilities, targets):
        seen.append(probabilities)
        return -float(len(seen)), 0.0

    monkeypatch.setattr(finetune, "_by_label", falling)
    texts, t = [one["text"] for one in documents(24)], np.eye(3)[np.arange(24) % 3]
    model = classifier(folder, epochs=3)
    model.fit(texts, t, (texts, t), torch.Generator().manual_seed(0))
    assert model.worst == [-1, -2, -3]
    assert model.probabilities(texts) == pytest.approx(seen[0], abs=1e-6)
    assert not np.allclose(seen[0], seen[2], atol=1e-3)


def test_large_batches_in_small_pieces_take_the_same_step(folder):
    given = [one["text"] for one in documents(16)]
    t = np.random.default_rng(0).dirichlet(np.ones(3), 16)
    states = []
    for at_once in (16, 5):
        model = classifier(folder, batch=16, at_once=at_once, epochs=1)
        model.model.config.hidden_dropout_prob = 0.0
        for module in model.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.fit(given, t, generator=torch.Generator().manual_seed(1))
        states.append(model.probabilities(given))
    assert states[0] == pytest.approx(states[1], abs=1e-3)


def test_the_same_seeds_give_the_same_classifier_from_a_configuration(folder):
    given = [one["text"] for one in documents(12)]
    t = np.eye(3)[np.arange(12) % 3]

    def run(seed):
        model = TransformerClassifier(small(), 3, tokenizer=folder, batch=6, epochs=1, seed=seed)
        return model.fit(given, t, generator=torch.Generator().manual_seed(seed)).probabilities(given)

    a, b, c = run(0), run(0), run(1)
    assert np.array_equal(a, b)
    assert not np.allclose(a, c)
    assert a.sum(1) == pytest.approx(np.ones(12))


def test_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        TransformerClassifier(tmp_path / "nowhere", 3)
    with pytest.raises(ValueError, match="a configuration has no tokenizer"):
        TransformerClassifier(small(), 3)
    with pytest.raises(ValueError, match="lr must be a number > 0"):
        classifier(folder, lr=0.0)
