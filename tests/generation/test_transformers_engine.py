"""Transformers' engine: the right distribution, and completions that depend on their own seed alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from realign_pipes.errors import InputError
from realign_pipes.generation.engine import Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import InverseCDFSampler, TransformersEngine, draw_uniforms
from realign_pipes.models.load import load_model
from realign_pipes.paper.dera import DeRaForCausalLM
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget

PRECISE = {"device": torch.device("cpu"), "dtype": torch.float64}
"""The same logits to many digits, however many rows are computed together: in float32 last bits differ, and now and
then a draw falls between."""


@pytest.fixture
def model(tmp_path, make_checkpoint):
    return load_model(make_checkpoint(tmp_path / "model", seed=4), **PRECISE)


def make_sampling(**changes):
    defaults = {"samples": 2, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 20, "batch_size": 64, "seed": 1}
    return Sampling(**{**defaults, **changes})


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [5]]
KEYS = ["a", "b", "c", "d"]


def make_prompts(alphas=None):
    """PROMPTS, with `alphas` if the model takes any."""
    alphas = alphas or [None] * len(PROMPTS)
    return [Prompt(key, ids, alpha) for key, ids, alpha in zip(KEYS, PROMPTS, alphas, strict=True)]


def draw(model, prompts=None, done=(), **changes):
    """{(key, sample): (token ids, whether it was finished)}"""
    groups = TransformersEngine(model).draw(prompts or make_prompts(), make_sampling(**changes), done)
    drawn = [completion for group in groups for completion in group]
    assert len({(c.key, c.sample) for c in drawn}) == len(drawn)
    return {(c.key, c.sample): (c.token_ids, c.finished) for c in drawn}


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.0, 0.3])
    rows = 20_000
    uniforms = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0))
    scores = InverseCDFSampler(uniforms)(torch.zeros(rows, 1), probabilities.log().expand(rows, 5))
    counts = torch.bincount(scores.argmax(-1), minlength=5) / rows
    torch.testing.assert_close(counts, probabilities, atol=0.015, rtol=0)
    assert counts[1] == counts[3] == 0


def test_the_extremes_of_the_uniforms_never_pick_an_impossible_token():
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, 4)
    largest = float(np.minimum(np.float32(1), np.float32(1 - 2**-20)))
    picked = InverseCDFSampler(torch.tensor([[0.0], [largest]]))(torch.zeros(2, 1), scores).argmax(-1)
    assert picked.tolist() == [1, 2]


def test_uniforms_depend_on_seed_problem_and_sample():
    base = draw_uniforms(1, "a", 0, 50)
    assert np.array_equal(base, draw_uniforms(1, "a", 0, 50))
    assert all(0 <= u < 1 for u in base)
    for other in (draw_uniforms(2, "a", 0, 50), draw_uniforms(1, "b", 0, 50), draw_uniforms(1, "a", 1, 50)):
        assert not np.array_equal(base, other)


def test_a_completion_does_not_depend_on_its_batch(model):
    together = draw(model)
    assert len(together) == 8
    assert together == draw(model, batch_size=1)
    assert together == draw(model, batch_size=3)
    alone = draw(model, prompts=[Prompt("c", PROMPTS[2])])
    assert alone == {key: value for key, value in together.items() if key[0] == "c"}


def test_samples_and_seeds_differ(model):
    drawn = draw(model)
    assert drawn["a", 0] != drawn["a", 1]
    assert drawn != draw(model, seed=2)


def test_sampled_tokens_are_those_of_the_formula(model):
    """Token by token without cache or batch: temperature, nucleus, inverse distribution function."""
    (tokens, _) = draw(model)["c", 1]
    uniforms = draw_uniforms(1, "c", 1, 20)
    so_far = list(PROMPTS[2])
    for step, token in enumerate(tokens):
        with torch.no_grad():
            p = torch.softmax(model(torch.tensor([so_far])).logits[0, -1].double() / 0.9, -1)
        ordered, ids = p.sort(descending=True)
        nucleus = ids[: int((ordered.cumsum(0) < 0.95).sum()) + 1]
        kept = torch.zeros_like(p)
        kept[nucleus] = p[nucleus]
        cdf = (kept / kept.sum()).cumsum(0)
        assert token == int((cdf <= uniforms[step]).sum())
        so_far.append(token)


def test_finished_and_truncated_completions(model):
    drawn = draw(model, max_new_tokens=60)
    eos = model.generation_config.eos_token_id
    finished = [tokens for tokens, done in drawn.values() if done]
    cut = [tokens for tokens, done in drawn.values() if not done]
    assert finished, "the seed gives both kinds"
    assert cut, "the seed gives both kinds"
    assert all(tokens[-1] == eos and eos not in tokens[:-1] for tokens in finished)
    assert all(len(tokens) == 60 and eos not in tokens for tokens in cut)


def test_the_checkpoints_own_generation_settings_do_not_leak_in(model):
    plain = draw(model)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 15
    assert draw(model) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_a_model_without_an_end_token_is_refused(model):
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="names no eos_token_id"):
        draw(model)


# -- resuming ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [3, 8])
def test_what_is_done_is_left_out_and_the_rest_is_as_it_would_have_been(model, batch_size):
    whole = draw(model, batch_size=batch_size)
    for done in ({("c", 0), ("c", 1), ("a", 0)}, {("d", 1)}, whole.keys() - {("b", 1)}):
        rest = draw(model, batch_size=batch_size, done=done)
        assert rest == {key: value for key, value in whole.items() if key not in done}
    assert draw(model, done=list(whole)) == {}


def test_batches_that_are_done_are_not_decoded(model, monkeypatch):
    """The longest prompts come first: with batches of two, a batch is one prompt."""
    widths = []
    generate = type(model).generate

    def counted(self, input_ids, **kwargs):
        widths.append(input_ids.shape[1])
        return generate(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", counted)
    draw(model, batch_size=2, max_new_tokens=1, done={("c", 0), ("c", 1), ("b", 0), ("b", 1), ("d", 0)})
    assert widths == [3, 1]


# -- rows that have finished leave the batch -----------------------------------------------------------------------
NUMBERS = [0.0, 0.4, 1.0, 1.6]
BUDGET = TokenBudget(60, ramp=0.2, alpha=-0.5, fast=1.5)
ALPHAS = {  # of the four prompts
    "inra": NUMBERS,
    "inra_at_0": [0.0] * 4,
    "inra_at_0.7": [0.7] * 4,
    "budget": [BUDGET] * 4,
    "mixture": [BUDGET, 0.4, 0.0, TokenBudget(30)],
}


@pytest.fixture
def make_case(tmp_path, make_checkpoint):
    """`make_case(name)` is a model, and an alpha for each prompt or None."""

    def make(name):
        sliding = {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 6,
            "use_sliding_window": True,
        }
        config = sliding if name in ("sliding", "inra") else {}
        first, second = (
            load_model(make_checkpoint(tmp_path / str(seed), seed=seed, **config), **PRECISE) for seed in (4, 5)
        )
        first.generation_config.eos_token_id = list(range(1, 21))  # so that random models finish now and then
        if name == "dera":
            return DeRaForCausalLM(first, second, 1.3), None
        if name in ("stock", "sliding"):
            return first, None
        inra = InRaForCausalLM.from_base(first)
        with torch.no_grad():
            for parameter in inra.adapter_layers[0].parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
        return inra, ALPHAS[name]

    return make


def plain(model, sampling, alphas):
    """One call of `generate` for all rows, in which they wait for the slowest: {(key, sample): token ids}."""
    rows = [(i, s) for i in range(len(PROMPTS)) for s in range(sampling.samples)]
    width = max(map(len, PROMPTS))
    input_ids = torch.tensor([[0] * (width - len(PROMPTS[i])) + PROMPTS[i] for i, _ in rows])
    mask = torch.tensor([[0] * (width - len(PROMPTS[i])) + [1] * len(PROMPTS[i]) for i, _ in rows])
    uniforms = np.stack([draw_uniforms(sampling.seed, KEYS[i], s, sampling.max_new_tokens) for i, s in rows])
    processors = [
        TemperatureLogitsWarper(sampling.temperature),
        TopPLogitsWarper(sampling.top_p),
        InverseCDFSampler(torch.from_numpy(uniforms)),
    ]

    def schedule(step, row):
        alpha = alphas[rows[row][0]]
        return alpha(step, row) if callable(alpha) else alpha

    generated = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList(processors),
        **({} if alphas is None else {"alpha": schedule}),
    )[:, width:].tolist()
    stops = [next((t + 1 for t, token in enumerate(row) if 1 <= token <= 20), None) for row in generated]
    return {(KEYS[i], s): tokens[:stop] for (i, s), tokens, stop in zip(rows, generated, stops, strict=True)}


@pytest.mark.parametrize("name", ["stock", "sliding", "dera", *ALPHAS])
def test_completions_are_those_of_one_plain_generate(name, make_case, monkeypatch):
    model, alphas = make_case(name)
    sampling = make_sampling(samples=8, max_new_tokens=60, temperature=1.3)
    expected = plain(model, sampling, alphas)
    sizes = []
    generate = type(model).generate

    def counted(self, input_ids, **kwargs):
        sizes.append(len(input_ids))
        return generate(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", counted)
    for batch_size in (32, 7):
        sizes.clear()
        groups = TransformersEngine(model).draw(
            make_prompts(alphas), sampling.model_copy(update={"batch_size": batch_size})
        )
        assert {(c.key, c.sample): c.token_ids for group in groups for c in group} == expected
        if batch_size == 32:
            assert sizes[0] == 32
            assert len(sizes) > 3
            assert sizes == sorted(sizes, reverse=True)
            # Each call but the last ends when a quarter of its rows has finished, and the next has what is left.
            assert all(after <= 0.75 * before for before, after in pairwise(sizes))
    assert min(map(len, expected.values())) < 20, "rows end early"
    assert max(map(len, expected.values())) > 40, "and late"


@pytest.mark.parametrize("name", ["inra", "mixture"])
def test_alphas_of_one_draw_give_what_each_gives_alone(name, make_case):
    model, alphas = make_case(name)
    prompts = make_prompts(alphas)
    options = {"samples": 4, "max_new_tokens": 60, "temperature": 1.3}
    together = draw(model, prompts, **options)
    assert len(together) == 16
    alone = [draw(model, [prompt], **options) for prompt in prompts]
    assert together == {key: value for drawn in alone for key, value in drawn.items()}
    # The alphas matter: the same prompts at another one are completed otherwise.
    other = draw(model, make_prompts([3.0] * 4), **options)
    assert all(together[key][0] != other[key][0] for key in together)


def test_a_schedule_is_asked_for_each_token_of_a_row_that_is_left(make_case):
    model, _ = make_case("inra")
    asked = []

    def schedule(step, row):
        asked.append((step, row))
        return 0.5

    drawn = draw(model, make_prompts([schedule] * 4), samples=4, max_new_tokens=60, temperature=1.3)
    lengths = [len(tokens) for tokens, _ in drawn.values()]
    assert {row for _, row in asked} == {0}, "whichever row of a batch it has is the engine's business"
    steps = [step for step, _ in asked]
    for step in range(max(lengths)):
        # Rows leave the batch some time after they ended, never before.
        assert steps.count(step) >= sum(length > step for length in lengths)
    assert max(steps) == max(lengths) - 1
    assert len(steps) < 16 * max(lengths), "rows have left"


@pytest.mark.parametrize("min_p", [0.1, 0.6])
def test_min_p_is_the_mask_of_a_mixture_of_the_model_with_itself(model, min_p):
    """Of probabilities at temperature 1, whatever the temperature of the draws."""
    mixture = DeRaForCausalLM(model, model, 0.5, plausibility=min_p)
    groups = TransformersEngine(model, min_p=min_p).draw(make_prompts(), make_sampling(temperature=3.0, top_p=1.0))
    drawn = {(c.key, c.sample): (c.token_ids, c.finished) for group in groups for c in group}
    assert drawn == draw(mixture, temperature=3.0, top_p=1.0)
    assert drawn != draw(model, temperature=3.0, top_p=1.0)


def test_plausibility_goes_to_the_models_generate(tmp_path, make_checkpoint):
    """InRa's two streams are a pair of models, which DeRa mixes with the same mask."""
    path = make_checkpoint(tmp_path / "model", seed=4)
    model = InRaForCausalLM.from_base(path)
    with torch.no_grad():
        for parameter in model.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    model.save_pretrained(tmp_path / "expanded")
    pair = DeRaForCausalLM(load_model(path, **PRECISE), load_model(tmp_path / "expanded", **PRECISE), 2.0)
    groups = TransformersEngine(model.to(torch.float64), plausibility=0.6).draw(
        make_prompts([2.0] * 4), make_sampling()
    )
    drawn = {(c.key, c.sample): (c.token_ids, c.finished) for group in groups for c in group}
    assert drawn != draw(pair)
    pair.plausibility = 0.6
    assert drawn == draw(pair)


def test_a_batch_that_is_too_large_says_what_to_set(model, monkeypatch):
    """Memory grows with each token, so it may fail late."""

    def generate(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(model, "generate", generate)
    own = model.generation_config
    with pytest.raises(InputError, match=r"ran out of memory .*8 completions: batch_size is 64, .*max_new_tokens 20\."):
        draw(model)
    assert model.generation_config is own


def test_rows_come_as_they_finish(model):
    """And not all at the end of their batch; between groups the model has its own generation config."""
    model.generation_config.eos_token_id = list(range(1, 21))  # many, so that rows finish
    own, groups = model.generation_config, []
    for group in TransformersEngine(model).draw(make_prompts(), make_sampling(max_new_tokens=60)):
        groups.append(group)
        assert model.generation_config is own
    assert len(groups) > 1 and sum(map(len, groups)) == 8
    lengths = [max(len(one.token_ids) for one in group) for group in groups]
    assert lengths == sorted(lengths)
