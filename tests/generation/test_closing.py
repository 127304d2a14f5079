"""Closing the thinking: against loops that decode by hand, and whatever the engine does with its batches."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.generation.closing import CloseThinking, check_closing_tag, make_closing
from realign_pipes.generation.engine import Closing, Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine, draw_uniforms
from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.tasks.completion import ThinkingTags

PRECISE = {"device": torch.device("cpu"), "dtype": torch.float64}
STOPS = list(range(1, 21))
"""Many, so that random models finish now and then."""
OPEN, CLOSE = (33, 34), (41, 42, 43)
"""Tags of several tokens."""


@pytest.fixture
def model(tmp_path, make_checkpoint):
    model = load_model(make_checkpoint(tmp_path / "model", seed=4), **PRECISE)
    model.generation_config.eos_token_id = STOPS
    return model


def sampling_of(**changes):
    defaults = {"samples": 4, "temperature": 1.2, "top_p": 0.95, "max_new_tokens": 40, "batch_size": 64, "seed": 1}
    return Sampling(**{**defaults, **changes})


def draw(model, prompts, done=(), **changes):
    """{(key, sample): token ids}"""
    groups = TransformersEngine(model).draw(prompts, sampling_of(**changes), done)
    return {(one.key, one.sample): one.token_ids for group in groups for one in group}


def as_text(ids):
    return " ".join(map(str, ids)) + " "


def is_open(completion, closing):
    """By searching the whole completion as text, where the tags were last written."""
    text = " " + as_text(completion)
    opened, closed = (text.rfind(" " + as_text(tag)) for tag in (closing.open_ids, closing.close_ids))
    return opened > closed or (closed == -1 and closing.opened)


def by_hand(model, prompt, sampling, sample):
    """One completion token by token, without a cache or a batch: temperature, nucleus, inverse distribution function.

    At `closing.at`, thinking that is open is closed with what is missing of the tag.
    """
    closing, done, to_force = prompt.closing, [], []
    uniforms = draw_uniforms(sampling.seed, prompt.key, sample, sampling.max_new_tokens)
    for step in range(sampling.max_new_tokens):
        if not to_force and closing.at is not None and step >= closing.at and is_open(done, closing):
            tag = list(closing.close_ids)
            begun = max(n for n in range(len(tag)) if done[len(done) - n :] == tag[:n])
            to_force = tag[begun:]
        if to_force:
            token = to_force.pop(0)
        else:
            with torch.no_grad():
                logits = model(torch.tensor([prompt.token_ids + done])).logits[0, -1].float().double()
            if is_open(done, closing):
                logits[closing.close_ids[0]] += closing.bias
            p = torch.softmax(logits / sampling.temperature, -1)
            ordered, ids = p.sort(descending=True)
            nucleus = ids[: int((ordered.cumsum(0) < sampling.top_p).sum()) + 1]
            kept = torch.zeros_like(p)
            kept[nucleus] = p[nucleus]
            token = int(((kept / kept.sum()).cumsum(0) <= uniforms[step]).sum())
        done.append(token)
        if token in STOPS:
            break
    return done


def prompts_of(**changes):
    """Four prompts of different lengths, of which two have opened the thinking."""
    texts = {"a": [50, 60, 70], "b": [80, 90], "c": [100, 110, 120, 130, *OPEN], "d": [*OPEN]}
    return [
        Prompt(key, ids, closing=Closing(OPEN, CLOSE, opened=ids[-2:] == [*OPEN], **changes))
        for key, ids in texts.items()
    ]


@pytest.mark.parametrize(
    "changes", [{"at": 9}, {"at": 0}, {"bias": 4.0}, {"at": 15, "bias": 3.0}, {"bias": -torch.inf, "at": 12}]
)
def test_completions_are_those_decoded_by_hand(model, changes):
    prompts = prompts_of(**changes)
    sampling = sampling_of()
    expected = {
        (prompt.key, sample): by_hand(model, prompt, sampling, sample)
        for prompt in prompts
        for sample in range(sampling.samples)
    }
    drawn = draw(model, prompts)
    assert drawn == expected
    assert draw(model, prompts, batch_size=5) == expected
    lengths = sorted(map(len, drawn.values()))
    assert lengths[0] < 15 < lengths[-1], "rows leave the batch, and generate starts again, before all is done"
    plain = draw(model, [dataclasses.replace(prompt, closing=None) for prompt in prompts])
    changed = {key for key in drawn if drawn[key] != plain[key]}
    assert {key for key, _ in changed} == {"c", "d"}, "the others never opened their thinking"


def test_a_tag_that_is_begun_is_finished_and_thinking_that_is_closed_is_left_alone(model):
    """The model's own tokens stand for the tags, so that it writes them itself."""
    plain = draw(model, [Prompt("a", [50, 60, 70])], samples=1, seed=3)["a", 0]
    assert len(plain) > 24

    def closed(at, open_ids=(7777,), close_ids=(), opened=True):
        closing = Closing(tuple(open_ids), tuple(close_ids), opened, at=at)
        prompt = Prompt("a", [50, 60, 70], closing=closing)
        drawn = draw(model, [prompt], samples=1, seed=3)["a", 0]
        assert drawn == by_hand(model, prompt, sampling_of(seed=3), 0)
        return drawn

    begun = closed(10, close_ids=(*plain[8:10], 200, 201))
    assert begun[:12] == [*plain[:10], 200, 201]
    assert closed(20, close_ids=plain[8:10]) == plain, "the model closed it itself"
    assert closed(11, close_ids=[*plain[8:10], plain[10], 200])[:12] == [*plain[:11], 200]
    assert closed(15, open_ids=plain[12:14], close_ids=[200, 201], opened=False)[:17] == [*plain[:15], 200, 201]
    assert closed(10, open_ids=plain[12:14], close_ids=[200, 201], opened=False)[:16] == [*plain[:14], 200, 201]
    assert closed(15, open_ids=plain[20:22], close_ids=[200], opened=False)[:23] == [*plain[:22], 200]
    assert closed(15, opened=False, close_ids=[200]) == plain
    reopened = closed(20, open_ids=plain[12:14], close_ids=plain[8:9])
    assert reopened[:21] == [*plain[:20], plain[8]]
    assert closed(10, close_ids=[200])[:11] == [*plain[:10], 200]


def test_a_tag_that_would_begin_in_the_prompt_is_none(model):
    """The completion's first token would end it, but the prompt's last one is not the completion's."""
    plain = draw(model, [Prompt("a", [50, 60, 70])], samples=1, seed=3)["a", 0]
    prompt = Prompt("a", [50, 60, 70], closing=Closing((9999,), (70, plain[0]), opened=True, at=4))
    assert draw(model, [prompt], samples=1, seed=3)["a", 0][:6] == [*plain[:4], 70, plain[0]]


def test_the_numbers_of_the_tokens_after_a_forced_one_are_those_of_their_step(model):
    """Forced to write what it would have written anyway, a model writes the same completion."""
    plain = draw(model, [Prompt("a", [50, 60, 70])], samples=1, seed=3)["a", 0]
    same = Prompt("a", [50, 60, 70], closing=Closing((9999,), tuple(plain[10:14]), opened=True, at=10))
    assert draw(model, [same], samples=1, seed=3)["a", 0] == plain


def test_work_that_is_resumed_comes_out_as_without_the_interruption(model):
    prompts = prompts_of(at=9, bias=1.5)
    for batch_size in (5, 64):
        whole = draw(model, prompts, batch_size=batch_size)
        done = {key for key in whole if key[0] == "c" or key[1] > 2}
        rest = draw(model, prompts, done, batch_size=batch_size)
        assert rest == {key: value for key, value in whole.items() if key not in done}


def test_rows_of_one_batch_have_their_own_closings(model):
    closings = [
        None,
        Closing(OPEN, CLOSE, True, at=5),
        Closing((1,), (60,), True, bias=6.0),
        Closing(OPEN, (44,), True, at=8),
    ]
    prompts = [
        Prompt(key, [50, 60 + row], closing=one) for row, (key, one) in enumerate(zip("abcd", closings, strict=True))
    ]
    together = draw(model, prompts)
    alone = [draw(model, [prompt]) for prompt in prompts]
    assert together == {key: value for drawn in alone for key, value in drawn.items()}


def test_generate_closes_the_thinking_of_inra_with_a_token_budget(model):
    """As from Python: greedy, with a schedule, and a processor of our own."""
    inra = InRaForCausalLM.from_base(model)
    with torch.no_grad():
        for parameter in inra.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    schedule, prompt = TokenBudget(24, ramp=0.25), [50, 60, *OPEN]
    closing = Closing(OPEN, CLOSE, opened=True, at=14)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 24}
    drawn = inra.generate(
        input_ids=torch.tensor([[0, *prompt], [70, *prompt]]),
        attention_mask=torch.tensor([[0, 1, 1, 1, 1], [1] * 5]),
        alpha=schedule,
        logits_processor=[CloseThinking([closing, closing], 5)],
        **options,
    )[:, 5:].tolist()
    for begin, completion in zip(([], [70]), drawn, strict=True):
        expected = []
        for step in range(24):
            with torch.no_grad():
                ids = torch.tensor([[*begin, *prompt, *expected]])
                both = [inra(ids, alpha=alpha).logits[0, -1] for alpha in (0.0, 1.0)]
            alpha = schedule(step, 0)
            mixed = (1 - alpha) * both[0] + alpha * both[1]
            expected.append(CLOSE[step - 14] if 14 <= step < 17 else int(mixed.argmax()))
        assert completion == expected


def test_ids_of_the_tags_and_who_opened_the_thinking(tiny_tokenizer):
    tags = ThinkingTags(open="<think>", close="</think>")
    made = make_closing(tiny_tokenizer, tags, "<|im_start|>assistant\n<think>\n", at=3, bias=0.5)
    assert made == Closing((4,), (5,), True, 3, 0.5)
    assert make_closing(tiny_tokenizer, tags, "<|im_start|>assistant\n") == Closing((4,), (5,), False, None, 0.0)
    several = make_closing(tiny_tokenizer, ThinkingTags(open="[T]", close="[/T]"), "?")
    assert [tiny_tokenizer.decode(list(ids)) for ids in (several.open_ids, several.close_ids)] == ["[T]", "[/T]"]
    assert len(several.close_ids) == 4


def test_a_tag_that_merges_with_what_follows_it_is_refused(tiny_tokenizer):
    """As `>` and a line break do in Qwen2's and Llama 3's vocabularies, and `</` with a space in SentencePiece's."""
    check_closing_tag(tiny_tokenizer, "</think>")
    check_closing_tag(tiny_tokenizer, "[/T]")
    vocabulary = {token: number for number, token in enumerate(["x", ">", "Ċ", "Ġ", "<", "/", "t", ">Ċ", ">ĊĊ"])}
    joined = Tokenizer(BPE(vocabulary, [(">", "Ċ"), (">Ċ", "Ċ")]))
    joined.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joined)
    with pytest.raises(InputError, match=r"gives '</t>' other tokens in 'x\\n</t>\\n\\n' than alone.*add_tokens"):
        check_closing_tag(tokenizer, "</t>")
    tokenizer.add_tokens(["</t>"])
    check_closing_tag(tokenizer, "</t>")
    joined.pre_tokenizer = ByteLevel(add_prefix_space=True, use_regex=False)
    with pytest.raises(InputError, match="other tokens"):
        check_closing_tag(PreTrainedTokenizerFast(tokenizer_object=joined), "<t>")


def test_forcing_survives_what_warps_the_distribution_and_leaves_other_rows_alone():
    scores = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    made = CloseThinking([Closing(OPEN, CLOSE, True, at=0), None], 4)(torch.zeros(2, 4, dtype=torch.long), scores)
    assert torch.equal(scores, before), "generate may return these"
    assert torch.equal(made[1], before[1])
    assert torch.isfinite(made[0]).nonzero()[:, 0].tolist() == [CLOSE[0]]
