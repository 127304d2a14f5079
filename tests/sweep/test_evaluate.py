"""Evaluating candidates: what is counted, which engine draws it, and what an interrupted sweep keeps."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from realign_pipes.errors import InputError
from realign_pipes.generation import graded
from realign_pipes.generation.closing import make_closing
from realign_pipes.generation.engine import Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.load import load_model, load_tokenizer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import KINDS, Candidate
from realign_pipes.sweep.schemas import BUDGET_GENERATIONS, GENERATIONS
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import DatasetProblems

CPU = torch.device("cpu")
SAMPLING = Sampling(samples=3, temperature=1.0, top_p=1.0, max_new_tokens=12, batch_size=4, seed=1)
TASKS = {"sums": DatasetProblems(kind="dataset", path="unused", verifier="exact")}


@pytest.fixture
def checkpoints(tmp_path, make_checkpoint):
    seeds = {"reference": 1, "aligned": 2}
    return tuple(make_checkpoint(tmp_path / name, seed=seed, dtype="float64") for name, seed in seeds.items())


@pytest.fixture
def inra(tmp_path, checkpoints):
    """A checkpoint whose adapter does something."""
    model = InRaForCausalLM.from_base(checkpoints[0])
    with torch.no_grad():
        for parameter in model.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    model.save_pretrained(tmp_path / "inra")
    load_tokenizer(checkpoints[0]).save_pretrained(tmp_path / "inra")
    return tmp_path / "inra"


@pytest.fixture
def problems(tiny_tokenizer):
    rows = []
    for number, answer in enumerate(["7", "8", "9"]):
        prompt = f"<|im_start|> user 3 + {answer} <|im_end|>"
        rows.append({"id": f"p{number}", "task": "sums", "question": prompt, "answer": answer, "metadata": "{}",
                     "messages": [{"role": "user", "content": prompt}], "prompt": prompt,
                     "prompt_ids": tiny_tokenizer(prompt).input_ids, "think_open": "<think>",
                     "think_close": "</think>"})  # fmt: skip
    return Dataset.from_list(rows)


@pytest.fixture
def make_evaluator(tmp_path, problems, tiny_tokenizer):
    """`make_evaluator(work="work")`; a checkpoint's fingerprint is its name."""

    class Names(dict):
        def __missing__(self, path):
            return path.name

    def make(work="work", problems=problems, tasks=TASKS, **options):
        names = Names()
        return Evaluator(problems, tasks, fingerprints=names, tokenizer=tiny_tokenizer, work=tmp_path / work, **options)

    return make


@pytest.fixture
def opened(monkeypatch):
    """The name of the function in the table of kinds and of the candidate, each time that an engine is opened."""
    calls, recorders = [], {}
    for name, kind in KINDS.items():

        def record(candidate, vocab_size, attention, open_it=kind.open):
            calls.append((open_it.__name__, candidate.name))
            return open_it(candidate, vocab_size, attention)

        one = recorders.setdefault(kind.open, record)  # kinds that open alike still do
        monkeypatch.setitem(KINDS, name, dataclasses.replace(kind, open=one))
    return calls


def frames(evaluator, candidates, sampling=SAMPLING):
    return {name: pd.read_parquet(file) for name, file in evaluator.evaluate(candidates, sampling).items()}


def completions_of(model, problems, sampling=SAMPLING, alpha=None):
    """{(problem, sample): completion}, from the engine itself."""
    prompts = [Prompt(row["id"], row["prompt_ids"], alpha) for row in problems]
    return {(one.key, one.sample): one for group in TransformersEngine(model).draw(prompts, sampling) for one in group}


def test_rows_are_the_sampled_completions_with_their_lengths_and_grades(
    make_evaluator, checkpoints, problems, tiny_tokenizer, monkeypatch
):
    asked = []

    def grade(attempts):
        for attempt in attempts:
            asked.append(attempt)
            yield len(asked) % 2 == 0

    monkeypatch.setattr(graded, "grade", grade)
    frame = frames(make_evaluator(), [Candidate("trra-1.5", "trra", 1.5, checkpoints[:1])])["trra-1.5"]
    expected = completions_of(TransformersEngine.of_checkpoint(checkpoints[0]).model, problems)
    assert frame.dtypes.astype(str).to_dict() == GENERATIONS
    assert len(frame) == len(expected) == 9
    assert set(frame["kind"]) == {"trra"} and set(frame["candidate"]) == {"trra-1.5"}
    assert set(frame["alpha"]) == {1.5}
    assert list(zip(frame["problem_id"], frame["sample"], strict=True)) == sorted(expected)
    for row in frame.itertuples():
        completion = expected[row.problem_id, row.sample]
        assert row.completion_tokens == len(completion.token_ids)
        assert row.finished == completion.finished
        assert row.completion == tiny_tokenizer.decode(completion.token_ids).removesuffix(tiny_tokenizer.eos_token)
        [position] = [n for n, attempt in enumerate(asked, 1) if attempt.completion == row.completion]
        assert row.correct == (position % 2 == 0)
        attempt = asked[position - 1]
        assert (attempt.problem_id, attempt.task) == (row.problem_id, TASKS["sums"])
        assert attempt.answer == {"p0": "7", "p1": "8", "p2": "9"}[row.problem_id]
        assert attempt.prompt == problems["prompt"][int(row.problem_id[1])]
    assert frame["seconds"].nunique() == 1 and frame["seconds"][0] > 0


def test_completions_are_graded_with_the_tags_of_their_problem(make_evaluator, problems, scripted_engine, monkeypatch):
    engine = scripted_engine(lambda prompt, sample: ("x</think>7", "x[/T]7", "7")[sample])
    monkeypatch.setitem(KINDS, "reference", dataclasses.replace(KINDS["reference"], open=lambda *_: engine.open()))
    candidates = [Candidate("reference", "reference", math.nan, ())]
    first = frames(make_evaluator(), candidates)["reference"]
    assert first[first["problem_id"] == "p0"]["correct"].tolist() == [True, False, True]
    other = problems.map(lambda row: {"think_open": "[T]", "think_close": "[/T]"})
    changed = frames(make_evaluator(problems=other), candidates)["reference"]
    assert changed[changed["problem_id"] == "p0"]["correct"].tolist() == [False, True, True]
    assert engine.opened == 2, "other tags are other work"


def test_any_engine_measures_a_candidate(make_evaluator, scripted_engine, monkeypatch):
    """Nothing in the sweep knows Transformers: an engine that only writes text does."""
    engine = scripted_engine(lambda prompt, sample: f"<think>{'a' * sample}</think>7" + "<|im_end|>" * (sample < 2))
    monkeypatch.setitem(KINDS, "inra", dataclasses.replace(KINDS["inra"], open=lambda *_: engine.open()))
    candidates = [Candidate(f"inra-{alpha:g}", "inra", alpha, ()) for alpha in (0.0, 1.0)]
    for name, frame in frames(make_evaluator(), candidates).items():
        assert frame["completion"].tolist() == ["<think></think>7", "<think>a</think>7", "<think>aa</think>7"] * 3, name
        assert frame["finished"].tolist() == [True, True, False] * 3
        assert frame["completion_tokens"].tolist() == [4, 5, 5] * 3
        assert frame["correct"].tolist() == [True] * 3 + [False] * 6
    assert engine.opened == 1


def test_dera_at_the_ends_writes_what_each_model_writes(make_evaluator, checkpoints):
    """And with the same random numbers as they: candidates differ by their distributions alone."""
    alone = [
        Candidate("reference", "reference", math.nan, checkpoints[:1]),
        Candidate("aligned", "aligned", math.nan, checkpoints[1:]),
    ]
    ends = [Candidate(f"dera-{alpha:g}", "dera", alpha, checkpoints) for alpha in (0.0, 1.0)]
    drawn = frames(make_evaluator(), [*alone, *ends])
    pd.testing.assert_series_equal(drawn["dera-0"]["completion"], drawn["reference"]["completion"])
    pd.testing.assert_series_equal(drawn["dera-1"]["completion"], drawn["aligned"]["completion"])
    assert not drawn["reference"]["completion"].equals(drawn["aligned"]["completion"])


def test_alphas_of_inra_from_one_model_are_what_each_writes_alone(make_evaluator, checkpoints, inra, opened):
    """And at alpha 0 what the reference writes, at alpha 1 what the expanded model does, with the same seeds."""
    candidates = [Candidate(f"inra-{alpha:g}", "inra", alpha, (inra,)) for alpha in (-0.5, 0.0, 0.6, 1.0)]
    together = frames(make_evaluator("together"), candidates)
    assert list(together) == [candidate.name for candidate in candidates]
    assert opened == [("_open_inra", "inra--0.5")]
    for candidate in candidates:
        alone = frames(make_evaluator("alone"), [candidate])[candidate.name].drop(columns="seconds")
        pd.testing.assert_frame_equal(together[candidate.name].drop(columns="seconds"), alone)
    for name, path in (("inra-0", checkpoints[0]), ("inra-1", inra)):
        stock = frames(make_evaluator(name), [Candidate("trra", "trra", 1.0, (path,))])["trra"]
        pd.testing.assert_series_equal(together[name]["completion"], stock["completion"])
    assert len({tuple(frame["completion"]) for frame in together.values()}) == 4


def test_an_engine_serves_as_many_candidates_as_it_can(make_evaluator, checkpoints, inra, opened):
    reference = checkpoints[:1]
    candidates = [
        Candidate("reference", "reference", math.nan, reference),
        Candidate("truncation-3", "truncation", math.nan, reference, 3),  # the reference's engine
        Candidate("reference-min-p", "reference", math.nan, reference, plausibility=0.1),
        Candidate("aligned", "aligned", math.nan, checkpoints[1:]),
        Candidate("dera-0.5", "dera", 0.5, checkpoints),
        Candidate("dera-1.5", "dera", 1.5, checkpoints),  # alpha is the model's
        Candidate("inra-0.5", "inra", 0.5, (inra,)),
        Candidate("inra-1.5", "inra", 1.5, (inra,)),
        Candidate("token-budget-5", "token_budget", math.nan, (inra,), 5, TokenBudget(5)),
        Candidate("token-budget-9", "token_budget", math.nan, (inra,), 9, TokenBudget(9)),
    ]
    make_evaluator().evaluate(candidates, SAMPLING)
    assert opened == [
        ("_open_model", "reference"),
        ("_open_model", "reference-min-p"),
        ("_open_model", "aligned"),
        ("_open_dera", "dera-0.5"),
        ("_open_dera", "dera-1.5"),
        ("_open_inra", "inra-0.5"),
    ]


def test_only_candidates_that_are_new_are_measured(make_evaluator, inra, opened):
    candidates = [Candidate(f"inra-{alpha:g}", "inra", alpha, (inra,)) for alpha in (0.0, 0.5, 1.5)]
    first = frames(make_evaluator(), candidates[:2])
    again = frames(make_evaluator(), candidates)
    assert opened == [("_open_inra", "inra-0"), ("_open_inra", "inra-1.5")]
    for name, frame in first.items():
        pd.testing.assert_frame_equal(again[name], frame)
    frames(make_evaluator(), candidates)
    assert len(opened) == 2, "nothing is left to measure"
    other = frames(make_evaluator(), candidates[:1], SAMPLING.model_copy(update={"seed": 2}))
    assert not other["inra-0"]["completion"].equals(first["inra-0"]["completion"])


def test_a_sweep_that_was_killed_resumes_inside_a_candidate(make_evaluator, checkpoints, tmp_path, monkeypatch):
    """Its completions come out to the bit as without the interruption, also after a line that was cut off."""
    candidate = Candidate("dera-0.5", "dera", 0.5, checkpoints)
    whole = frames(make_evaluator("whole"), [candidate])["dera-0.5"].drop(columns="seconds")
    batches = []
    draw = TransformersEngine.draw

    def killed_in_third_batch(*arguments, **named):
        for group in draw(*arguments, **named):
            batches.append(group)
            if len(batches) == 3:
                raise KeyboardInterrupt
            yield group

    monkeypatch.setattr(TransformersEngine, "draw", killed_in_third_batch)
    with pytest.raises(KeyboardInterrupt):
        make_evaluator().evaluate([candidate], SAMPLING)
    file = tmp_path / "work" / "dera-0.5" / "completions-0-of-1.jsonl"
    with file.open("a") as stream:
        stream.write('{"seconds": 0.')
    resumed = frames(make_evaluator(), [candidate])["dera-0.5"].drop(columns="seconds")
    pd.testing.assert_frame_equal(resumed, whole)
    assert len(batches) == 4 and batches[2] == batches[3], "two batches of three are not drawn again"
    assert sorted(path.name for path in file.parent.iterdir()) == ["generations.parquet", "work.json"]


def test_budgets_cut_the_reference_off_and_never_let_inra_past(make_evaluator, tmp_path, checkpoints):
    untrained = tmp_path / "untrained"
    InRaForCausalLM.from_base(checkpoints[0]).save_pretrained(untrained)
    load_tokenizer(checkpoints[0]).save_pretrained(untrained)
    whole = Candidate("reference", "reference", math.nan, checkpoints[:1])
    budgets = [
        candidate
        for budget in (3, 7)
        for candidate in (
            Candidate(f"truncation-{budget}", "truncation", math.nan, checkpoints[:1], budget),
            Candidate(f"token-budget-{budget}", "token_budget", math.nan, (untrained,), budget, TokenBudget(budget)),
        )
    ]
    drawn = frames(make_evaluator(), [whole, *budgets])
    everything = drawn.pop("reference")
    assert list(drawn) == ["truncation-3", "token-budget-3", "truncation-7", "token-budget-7"]
    for name, frame in drawn.items():
        budget = int(name.rpartition("-")[2])
        assert frame.dtypes.astype(str).to_dict() == BUDGET_GENERATIONS
        assert set(frame["budget"]) == {budget}
        assert frame["completion_tokens"].max() <= budget
        # An untrained adapter is the identity, so both are the reference's completions, cut off.
        assert frame["finished"].equals(everything["finished"] & (everything["completion_tokens"] <= budget))
        for row, of_all in zip(frame.itertuples(), everything.itertuples(), strict=True):
            assert of_all.completion.startswith(row.completion)


def test_a_token_budget_s_alpha_follows_its_schedule(make_evaluator, inra, problems):
    schedule = TokenBudget(12, ramp=0.25, alpha=-1.0, fast=2.0)
    candidates = [Candidate("token-budget-12", "token_budget", math.nan, (inra,), 12, schedule)]
    frame = frames(make_evaluator(), candidates)["token-budget-12"]
    expected = completions_of(InRaForCausalLM.from_pretrained(inra), problems, alpha=schedule)
    for row in frame.itertuples():
        assert row.completion_tokens == len(expected[row.problem_id, row.sample].token_ids)
    constant = frames(make_evaluator(), [Candidate("inra--1", "inra", -1.0, (inra,))])["inra--1"]
    assert not frame["completion"].equals(constant["completion"])


def test_processes_share_the_problems_and_the_main_one_joins_the_parts(
    make_evaluator, checkpoints, monkeypatch, tmp_path
):
    """One rank after the other, the main process last, so that all parts are there when it joins them."""
    candidate = Candidate("reference", "reference", math.nan, checkpoints[:1])
    alone = frames(make_evaluator("alone"), [candidate])["reference"].drop(columns="seconds")
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 5)
    monkeypatch.setattr(PartialState, "wait_for_everyone", lambda self: None)
    for rank in (4, 3, 2, 1, 0):  # of three problems, ranks 3 and 4 get none
        monkeypatch.setitem(PartialState._shared_state, "process_index", rank)
        files = make_evaluator().evaluate([candidate], SAMPLING)
        if rank == 1:
            kept = {path.name for path in (tmp_path / "work" / "reference").glob("*.jsonl")}
            assert kept == {"completions-1-of-5.jsonl", "completions-2-of-5.jsonl"}
    together = pd.read_parquet(files["reference"])
    pd.testing.assert_frame_equal(together.drop(columns="seconds"), alone)


@pytest.fixture
def thinking(problems, tiny_tokenizer):
    """The problems with prompts that have opened the thinking."""

    def opened(row):
        prompt = f"{row['prompt']}<think>"
        return {"prompt": prompt, "prompt_ids": tiny_tokenizer(prompt).input_ids}

    return problems.map(opened)


def closing_of(problems, tokenizer, **changes):
    tags = ThinkingTags(open="<think>", close="</think>")
    return [make_closing(tokenizer, tags, prompt, **changes) for prompt in problems["prompt"]]


def texts_of(model, problems, closings, tokenizer, sampling=SAMPLING):
    prompts = [Prompt(row["id"], row["prompt_ids"], None, one) for row, one in zip(problems, closings, strict=True)]
    drawn = [one for group in TransformersEngine(model).draw(prompts, sampling) for one in group]
    return {(one.key, one.sample): graded.completion_text(tokenizer, one.token_ids, one.finished) for one in drawn}


def test_thinking_is_closed_where_an_answer_still_fits(
    make_evaluator, tmp_path, checkpoints, inra, thinking, tiny_tokenizer, opened
):
    untrained = tmp_path / "untrained"
    InRaForCausalLM.from_base(checkpoints[0]).save_pretrained(untrained)
    load_tokenizer(checkpoints[0]).save_pretrained(untrained)
    schedule = TokenBudget(9, 0.25)
    candidates = [
        Candidate("forced", "forced_close", math.nan, checkpoints[:1], 9, close_at=5),
        Candidate("truncation", "truncation", math.nan, checkpoints[:1], 9),
        Candidate("untrained", "token_budget", math.nan, (untrained,), 9, schedule, close_at=5),
        Candidate("trained", "token_budget", math.nan, (inra,), 9, schedule, close_at=5),
    ]
    drawn = frames(make_evaluator(problems=thinking), candidates)
    assert [name for _, name in opened] == ["forced", "untrained", "trained"]
    short = SAMPLING.model_copy(update={"max_new_tokens": 9})
    model = TransformersEngine.of_checkpoint(checkpoints[0]).model
    expected = texts_of(model, thinking, closing_of(thinking, tiny_tokenizer, at=5), tiny_tokenizer, short)
    forced = drawn["forced"]
    assert dict(zip(zip(forced["problem_id"], forced["sample"], strict=True), forced["completion"], strict=True)) == (
        expected
    )
    for name in ("forced", "untrained", "trained"):
        frame = drawn[name]
        assert frame["completion_tokens"].max() == 9, "what is forced counts"
        assert (frame["completion"].str.contains("</think>") | (frame["completion_tokens"] <= 5)).all()
    assert not (drawn["truncation"]["completion"].str.contains("</think>")).all()
    pd.testing.assert_series_equal(drawn["untrained"]["completion"], forced["completion"])
    assert not drawn["trained"]["completion"].equals(forced["completion"])


def test_a_closing_tag_that_cannot_be_found_is_named_before_anything_is_drawn(
    make_evaluator, checkpoints, opened, monkeypatch
):
    def refuse(tokenizer, tag):
        raise InputError(f"{tag} merges")

    monkeypatch.setattr("realign_pipes.sweep.evaluate.check_closing_tag", refuse)
    reference = Candidate("reference", "reference", math.nan, checkpoints[:1])
    forced = Candidate("forced", "forced_close", math.nan, checkpoints[:1], 9, close_at=5)
    biased = Candidate("close-bias-2", "close_bias", 2.0, checkpoints[:1])
    for one in (forced, biased):
        with pytest.raises(InputError, match="</think> merges"):
            make_evaluator().evaluate([reference, one], SAMPLING)
    assert not opened


def test_a_closing_bias_is_its_candidate_s_alpha(make_evaluator, checkpoints, thinking, tiny_tokenizer, opened):
    candidates = [
        Candidate("reference", "reference", math.nan, checkpoints[:1]),
        *(Candidate(f"close-bias-{bias:g}", "close_bias", bias, checkpoints[:1]) for bias in (0.0, 3.0)),
    ]
    drawn = frames(make_evaluator(problems=thinking), candidates)
    assert [name for _, name in opened] == ["reference"], "one engine for all biases"
    pd.testing.assert_series_equal(drawn["close-bias-0"]["completion"], drawn["reference"]["completion"])
    model = TransformersEngine.of_checkpoint(checkpoints[0]).model
    closings = closing_of(thinking, tiny_tokenizer, bias=3.0)
    biased = drawn["close-bias-3"]
    assert set(biased["alpha"]) == {3.0}
    expected = texts_of(model, thinking, closings, tiny_tokenizer)
    assert biased["completion"].tolist() == [expected[key] for key in sorted(expected)]
    assert not biased["completion"].equals(drawn["reference"]["completion"])


def test_an_instruction_stands_at_the_end_of_each_question(
    make_evaluator, checkpoints, problems, tiny_tokenizer, monkeypatch
):
    asked = []
    monkeypatch.setattr(graded, "grade", lambda attempts: (asked.append(attempt) or True for attempt in attempts))
    brief = Candidate("prompt-brief", "prompt", math.nan, checkpoints[:1], instruction="Be brief.")
    questions = problems.map(lambda row: {"messages": [{"role": "user", "content": f"3 + {row['answer']}?"}]})
    frame = frames(make_evaluator(problems=questions), [brief])["prompt-brief"]
    prompts = [
        f"<|im_start|>user\n3 + {answer}?\n\nBe brief.<|im_end|>\n<|im_start|>assistant\n" for answer in ("7", "8", "9")
    ]
    assert {(one.problem_id, one.prompt, one.answer) for one in asked} == set(
        zip(("p0", "p1", "p2"), prompts, ("7", "8", "9"), strict=True)
    )
    rendered = Dataset.from_list(
        [{"id": f"p{number}", "prompt_ids": tiny_tokenizer(prompt).input_ids} for number, prompt in enumerate(prompts)]
    )
    expected = completions_of(TransformersEngine.of_checkpoint(checkpoints[0]).model, rendered)
    assert frame["completion_tokens"].tolist() == [len(expected[key].token_ids) for key in sorted(expected)]
    texts = [
        graded.completion_text(tiny_tokenizer, one.token_ids, one.finished)
        for one in map(expected.get, sorted(expected))
    ]
    assert frame["completion"].tolist() == texts
    assert frame["alpha"].isna().all()
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("assistant", "helper")
    asked.clear()
    frames(make_evaluator(problems=questions), [brief])
    assert asked and all("helper" in one.prompt for one in asked), "another template is other work"


def test_an_instruction_of_the_candidate_follows_that_of_all_problems(make_evaluator, checkpoints, monkeypatch):
    asked = []
    monkeypatch.setattr(graded, "grade", lambda attempts: (asked.append(attempt) or True for attempt in attempts))
    brief = Candidate("prompt-brief", "prompt", math.nan, checkpoints[:1], instruction="Be brief.")
    frames(make_evaluator(instruction="Box it."), [brief])
    assert asked and all("\n\nBox it.\n\nBe brief.<|im_end|>" in attempt.prompt for attempt in asked)


def test_a_task_may_have_samples_of_its_own(make_evaluator, checkpoints, problems):
    """And the completions that two tasks have in common are those that one number of samples draws."""
    several = problems.map(lambda row: {"task": "few" if row["id"] == "p1" else "sums"})
    tasks = {**TASKS, "few": TASKS["sums"].model_copy(update={"samples": 1})}
    reference = Candidate("reference", "reference", math.nan, checkpoints[:1])
    frame = frames(make_evaluator("own", several, tasks), [reference])["reference"]
    assert frame.groupby("problem_id")["sample"].agg(list).to_dict() == {
        "p0": [0, 1, 2], "p1": [0], "p2": [0, 1, 2],
    }  # fmt: skip
    every = frames(make_evaluator("same"), [reference])["reference"]
    both = frame.merge(every, on=["problem_id", "sample"])
    assert len(both) == len(frame) == 7 and (both["completion_x"] == both["completion_y"]).all()
    assert frame["seconds"].nunique() == 1


def opened_model(kind, alpha, checkpoints, tokenizer, **about):
    """The model of a candidate's engine."""
    return KINDS[kind].open(Candidate("any", kind, alpha, checkpoints, **about), len(tokenizer)).model


def test_merged_weights_are_interpolated_and_extrapolated(checkpoints, tiny_tokenizer):
    ours, theirs = (load_model(path, device=CPU).state_dict() for path in checkpoints)
    for alpha in (-1.0, 0.5, 3.0):
        for name, tensor in opened_model("merge", alpha, checkpoints, tiny_tokenizer).state_dict().items():
            torch.testing.assert_close(tensor, (1 - alpha) * ours[name] + alpha * theirs[name], rtol=1e-5, atol=1e-6)


def test_ties_keeps_the_largest_differences(checkpoints, tiny_tokenizer):
    """At alpha 1 what is kept is the aligned model's, and what is not the reference's."""
    ours, theirs = (load_model(path, device=CPU).state_dict() for path in checkpoints)
    merged = opened_model("ties", 1.0, checkpoints, tiny_tokenizer, density=0.3).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    kept, difference = ~torch.isclose(merged[name], ours[name]), (theirs[name] - ours[name]).abs()
    assert kept.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert difference[kept].min() >= difference[~kept].max()
    torch.testing.assert_close(merged[name][kept], theirs[name][kept], rtol=1e-5, atol=1e-6)


@pytest.fixture
def lora(tmp_path, checkpoints):
    """An adapter for the reference whose matrices do something."""
    adapted = get_peft_model(
        load_model(checkpoints[0], device=CPU), LoraConfig(r=3, lora_alpha=6, target_modules=["up_proj", "q_proj"])
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.2)
    adapted.peft_config["default"].base_model_name_or_path = str(checkpoints[0])
    adapted.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_scaled_lora_adds_so_much_of_the_matrices(checkpoints, lora, tiny_tokenizer, alpha):
    """W + alpha * (6 / 3) * B A, by hand; 0 is the reference, 1 the student with its matrices merged."""
    matrices = load_file(lora / "adapter_model.safetensors")
    by_hand = load_model(checkpoints[0], device=CPU)
    with torch.no_grad():
        for name, matrix in matrices.items():
            if "lora_A" in name:
                weight = by_hand.get_parameter(
                    name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                )
                weight += alpha * 2 * (matrices[name.replace("lora_A", "lora_B")] @ matrix).to(weight)
        ids = torch.tensor([[5, 6, 7, 8]])
        logits = opened_model("lora_scale", alpha, (lora,), tiny_tokenizer)(ids).logits
        torch.testing.assert_close(logits, by_hand(ids).logits)
        reference = load_model(checkpoints[0], device=CPU)(ids).logits
    assert torch.allclose(logits, reference) == (alpha == 0)


def test_another_mask_is_another_candidate(make_evaluator, checkpoints, opened):
    candidate = Candidate("trra-1", "trra", 1.0, checkpoints[:1])
    make_evaluator().evaluate([candidate], SAMPLING)
    masked = dataclasses.replace(candidate, plausibility=0.1)
    assert set(frames(make_evaluator(), [masked])["trra-1"]["plausibility"]) == {0.1}
    assert len(opened) == 2
