"""A reward model of two layers with random weights: batches and padding change no score; misfits are refused."""

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from realign_pipes.errors import InputError
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.parameters import Reward
from realign_pipes.graders.reward import RewardModel
from realign_pipes.models.trust import CheckpointError

CHAT = [{"role": "user", "content": "Hi?"}]
ANSWERS = [
    Answered("chat", f"chat-{n}", 0, "Hi?", {}, text, text, CHAT) for n, text in enumerate(["Yes.", "", "No, no, no!"])
]


@pytest.fixture
def classifier(tmp_path, tiny_tokenizer):
    """`classifier(labels=1)` is the folder of a reward model, whose config names no token for padding."""

    def make(labels: int = 1) -> Path:
        torch.manual_seed(5)
        config = Qwen2Config(
            vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, num_labels=labels,
        )  # fmt: skip
        model = Qwen2ForSequenceClassification(config)
        torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(tmp_path / "reward")
        tiny_tokenizer.save_pretrained(tmp_path / "reward")
        return tmp_path / "reward"

    return make


def grader(path: Path, **changes) -> Reward:
    values = {"kind": "reward", "model": str(path), "input": "chat", "batch_size": 2, "tokens": 100}
    return Reward(**values | changes)


def test_scores_are_the_logits_of_one_row_at_a_time(classifier, tiny_tokenizer, tmp_path):
    path = classifier()
    scores = RewardModel("reward", grader(path)).score("trra-1", ANSWERS, tmp_path / "work")
    model = Qwen2ForSequenceClassification.from_pretrained(path).eval()
    for one, score in zip(ANSWERS, scores, strict=True):
        chat = [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
        ids = tiny_tokenizer(tiny_tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"]
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(model.score(hidden)), abs=1e-5)
    assert len({round(score, 4) for score in scores}) == 3
    pairs = RewardModel("reward", grader(path, input="pair")).score("trra-1", ANSWERS, tmp_path / "pairs")
    ids = tiny_tokenizer("Hi?", "Yes.")["input_ids"]
    assert pairs[0] == pytest.approx(
        float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])), abs=1e-5
    )


def test_a_pair_has_the_segments_that_bert_tells_its_texts_by(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "yes", "no", "?", ".", ",", "!"]
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, num_labels=1, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    BertTokenizer({word: place for place, word in enumerate(words)}).save_pretrained(tmp_path / "bert")
    pairs = RewardModel("reward", grader(tmp_path / "bert", input="pair", batch_size=3))
    scores = pairs.score("trra-1", ANSWERS, tmp_path / "work")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "bert").eval()
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "bert")
    for one, score in zip(ANSWERS, scores, strict=True):
        inputs = tokenizer(one.question, one.answer, return_tensors="pt")
        assert score == pytest.approx(float(model(**inputs).logits), abs=1e-5)


def test_a_chat_of_several_turns_is_read_as_one(classifier, tiny_tokenizer, tmp_path):
    """Not as one turn that quotes the others."""
    turns = [*CHAT, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Why?"}]
    one = Answered("chat", "chat-0", 0, "user: Hi?\n\nassistant: Hi!\n\nuser: Why?", {}, "So.", "So.", turns)
    path = classifier()
    (score,) = RewardModel("reward", grader(path)).score("trra-1", [one], tmp_path / "work")
    chat = [*turns, {"role": "assistant", "content": "So."}]
    ids = tiny_tokenizer(tiny_tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"]
    model = Qwen2ForSequenceClassification.from_pretrained(path).eval()
    hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    assert score == pytest.approx(float(model.score(hidden)), abs=1e-5)


def test_rows_are_padded_with_what_the_model_takes_for_padding(classifier, tmp_path):
    path = classifier()
    model = Qwen2ForSequenceClassification.from_pretrained(path)
    unused = model.config.vocab_size
    model.resize_token_embeddings(unused + 1)  # a token that no text has
    model.config.pad_token_id = unused
    model.save_pretrained(path)
    together = RewardModel("reward", grader(path, batch_size=3)).score("trra-1", ANSWERS, tmp_path / "together")
    alone = RewardModel("reward", grader(path, batch_size=1)).score("trra-1", ANSWERS, tmp_path / "alone")
    assert together == pytest.approx(alone, abs=1e-5)


def test_an_interrupted_run_scores_only_the_rest(classifier, tmp_path, monkeypatch):
    model = RewardModel("reward", grader(classifier()))
    whole = model.score("trra-1", ANSWERS, tmp_path / "whole")
    scored, logits = [], model._logits

    def stop(rows):
        if scored:
            raise KeyboardInterrupt
        scored.append(rows)
        return logits(rows)

    monkeypatch.setattr(model, "_logits", stop)
    with pytest.raises(KeyboardInterrupt):
        model.score("trra-1", ANSWERS, tmp_path / "work")
    kept = tmp_path / "work" / "scores.jsonl"
    kept.write_text(kept.read_text() + '{"0": 1.')  # killed while it wrote
    rest = []
    monkeypatch.setattr(model, "_logits", lambda rows: rest.append(len(rows)) or logits(rows))
    assert model.score("trra-1", ANSWERS, tmp_path / "work") == pytest.approx(whole, abs=1e-5)
    assert rest == [1]
    assert model.score("trra-1", ANSWERS, tmp_path / "work") == pytest.approx(whole, abs=1e-5) and rest == [1]


def test_what_does_not_fit_is_refused(classifier, make_checkpoint, tmp_path):
    path = classifier()
    with pytest.raises(InputError, match=r"reward\.tokens is 20, but question and answer of chat-2 .* have"):
        RewardModel("reward", grader(path, tokens=20)).score("trra-1", ANSWERS, tmp_path / "work")
    with pytest.raises(InputError, match=r"tokens is 500, but .* has 128 positions"):
        RewardModel("reward", grader(path, tokens=500))
    with pytest.raises(InputError, match="has 3 labels; a reward model has one"):
        RewardModel("reward", grader(classifier(3)))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights.*score\.weight"):
        RewardModel("reward", grader(make_checkpoint(tmp_path / "language_model")))
