"""A conversation with kept caches against one that is computed again from its first token at every turn."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from realign_pipes.errors import InputError
from realign_pipes.paper import InRaForCausalLM, TokenBudget, converse

TURNS = ["What is 4 - 9?", "And 2 + 3?", "So?"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}
DROPS_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'].split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture
def model(tmp_path, make_checkpoint):
    """In float64, its adapter moved away from the identity."""
    base = AutoModelForCausalLM.from_pretrained(make_checkpoint(tmp_path / "base", dtype="float64"))
    inra = InRaForCausalLM.from_base(base)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in inra.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return inra


def watch(model, monkeypatch):
    """All that `generate` gets and gives from now on: (tokens, those of them that run, what it returns)."""
    calls, widths, real = [], [], model.generate
    model.expanded.get_input_embeddings().register_forward_hook(lambda *call: widths.append(call[1][0].shape))

    def generate(tokens, **kwargs):
        widths.clear()
        written = real(tokens, **kwargs)
        calls.append((tokens[0].tolist(), [tuple(width) for width in widths], written.sequences[0].tolist()))
        return written

    monkeypatch.setattr(model, "generate", generate)
    return calls


def from_scratch(model, tokens, alpha, **more):
    tokens = torch.tensor([tokens])
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), alpha=alpha, **GREEDY, **more)[0].tolist()


@pytest.mark.parametrize(
    ("template", "ends", "alphas"),
    [
        ("tiny_tokenizer", False, [0.0, 1.0, 0.4]),
        ("thinking_tokenizer", True, [1.0, 0.0, -0.5]),
        ("thinking_tokenizer", False, [TokenBudget(6), 0.0, 1.0]),
    ],
)
def test_every_turn_is_that_of_a_run_from_scratch_at_its_alpha(model, monkeypatch, request, template, ends, alphas):
    """Replies that the limit cuts off, and replies that end with the end of a turn."""
    tokenizer = request.getfixturevalue(template)
    more = {"forced_eos_token_id": tokenizer.eos_token_id} if ends else {}
    with monkeypatch.context() as patched:
        calls = watch(model, patched)
        replies = converse(model, tokenizer, TURNS, alphas, **GREEDY, **more)
    before, cached = [], 0
    for (tokens, runs, written), turn, alpha, reply in zip(calls, TURNS, alphas, replies, strict=True):
        assert tokens[: len(before)] == before, "what was written stays as it was"
        message = [{"role": "user", "content": turn}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(tokens[len(before) :]).removeprefix("<|im_end|>\n") == prompt
        assert runs[0] == (2, len(tokens) - cached), "both streams run, over what is new alone"
        assert written == from_scratch(model, tokens, alpha, **more)
        assert reply == tokenizer.decode(written[len(tokens) :], skip_special_tokens=True)
        before, cached = written[:-1] if ends else written, len(written) - 1
    others = {tuple(from_scratch(model, calls[-1][0], alpha, **more)) for alpha in (0.0, 1.0)}
    assert len(others) == 2, "the alphas must show for this test to mean something"


def test_one_alpha_throughout_runs_the_streams_that_it_needs(model, monkeypatch, tiny_tokenizer):
    calls = watch(model, monkeypatch)
    converse(model, tiny_tokenizer, TURNS, [0.0] * 3, **GREEDY)
    assert {width[0] for _, runs, _ in calls for width in runs} == {1}


@pytest.mark.parametrize(
    ("turns", "alphas", "more", "message"),
    [
        ([], [], {}, "turns is empty"),
        (TURNS, [0.0, 1.0], {}, "3 turns and 2 alphas"),
        (["Hello", " \n"], [0.0, 1.0], {}, "turn 2 is empty"),
        (TURNS, [0.0, 1.0, float("nan")], {}, "turn 3: alpha must be finite, not nan"),
        (TURNS, [0.0, 1.0, 0.5], {"num_return_sequences": 2}, "leave out num_return_sequences"),
    ],
)
def test_what_cannot_be_a_conversation_is_refused_before_the_model_runs(
    model, monkeypatch, tiny_tokenizer, turns, alphas, more, message
):
    calls = watch(model, monkeypatch)
    with pytest.raises(InputError, match=message):
        converse(model, tiny_tokenizer, turns, alphas, **GREEDY, **more)
    assert calls == []


def test_a_template_that_drops_thinking_is_refused(model, monkeypatch, tiny_tokenizer):
    tiny_tokenizer.chat_template = DROPS_THINKING
    assert len(converse(model, tiny_tokenizer, TURNS[:1], [0.5], **GREEDY)) == 1
    calls = watch(model, monkeypatch)
    monkeypatch.setattr(tiny_tokenizer, "decode", lambda *_, **__: "a thought</think>an answer")
    with pytest.raises(InputError, match=r"turn 2: the chat template does not repeat .* Set tokenizer\.chat_template"):
        converse(model, tiny_tokenizer, TURNS, [0.5, 0.0, 1.0], **GREEDY)
    assert len(calls) == 1
