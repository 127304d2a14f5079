"""InRa and DeRa as models of lm-evaluation-harness: their likelihoods and greedy texts are those of the formula."""

from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from realign_pipes.errors import InputError
from realign_pipes.models.load import load_model, load_tokenizer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.objective import fuse_logits
from realign_pipes.sweep import harness

PROJECT = Path(__file__).parents[2]
CPU = torch.device("cpu")
REQUESTS = [("3 + 4 =", " 7"), ("The quick brown", " fox jumps"), ("3 + 4 =", " 8"), ("a", "b"), ("3 + 4?\n", "7")]
"""Contexts and continuations of several lengths; the first and the third share a context. The last context ends as
those of chat templates do, with a line break that is not part of the continuation."""


@pytest.fixture
def pair(tmp_path, make_checkpoint):
    """A reference and an aligned checkpoint in float64, heads as large as the tokenizer."""
    return [
        make_checkpoint(tmp_path / name, seed=seed, dtype="float64")
        for seed, name in enumerate(("reference", "aligned"), start=1)
    ]


@pytest.fixture
def inra(tmp_path, pair):
    """A checkpoint whose adapter does something."""
    model = InRaForCausalLM.from_base(pair[0])
    with torch.no_grad():
        for parameter in model.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    model.save_pretrained(tmp_path / "inra")
    load_tokenizer(pair[0]).save_pretrained(tmp_path / "inra")
    return tmp_path / "inra"


def instances(requests, kind="loglikelihood"):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in requests]


@torch.inference_mode()
def by_formula(first, second, alpha, plausibility=0.0):
    """The log-likelihoods of REQUESTS under the mixture of two stock checkpoints, each request by itself."""
    tokenizer, models = load_tokenizer(first), [load_model(path, device=CPU) for path in (first, second)]
    found = []
    for context, continuation in REQUESTS:
        ids = torch.tensor([tokenizer.encode(context + continuation)])
        start = len(tokenizer.encode(context))
        mixed = fuse_logits(*(model(ids).logits for model in models), alpha, plausibility)
        logs = torch.log_softmax(mixed, dim=-1)[0, start - 1 : -1]
        found.append(logs.gather(-1, ids[0, start:, None]).sum().item())
    return found


@pytest.mark.parametrize(("alpha", "plausibility"), [(-0.5, 0.0), (0.4, 0.0), (1.5, 0.0), (1.5, 0.02)])
def test_inras_likelihoods_are_the_formulas(pair, inra, alpha, plausibility):
    """Stock tools load stream A from an InRa checkpoint: the two passes of the formula know nothing of InRa."""
    arguments = f"pretrained={inra},alpha={alpha},plausibility={plausibility}"
    lm = get_model("inra").create_from_arg_string(arguments, {"batch_size": 3})
    found = [one for one, _ in lm.loglikelihood(instances(REQUESTS))]
    assert found == pytest.approx(by_formula(pair[0], inra, alpha, plausibility), abs=1e-4)


def test_at_alpha_0_inra_is_hflm_on_the_base_model(pair, inra):
    base = HFLM(pretrained=load_model(pair[0], device=CPU), tokenizer=load_tokenizer(pair[0]), batch_size=3)
    requests = instances(REQUESTS[:-1])  # HFLM counts the line break of the last one
    assert harness.InRaLM(inra, 0, batch_size=3).loglikelihood(requests) == base.loglikelihood(requests)


@pytest.mark.parametrize("plausibility", [0.0, 0.02])
def test_deras_likelihoods_are_the_formulas(pair, plausibility):
    reference, aligned = map(str, pair)
    arguments = {"reference": reference, "aligned": aligned, "alpha": 1.5, "plausibility": plausibility}
    lm = get_model("dera").create_from_arg_obj(arguments, {"batch_size": 3})
    found = [one for one, _ in lm.loglikelihood(instances(REQUESTS))]
    assert found == pytest.approx(by_formula(*pair, 1.5, plausibility), abs=1e-4)


def test_greedy_texts_are_those_of_generate_at_that_alpha(inra):
    """Of prompts of several lengths in one batch; the harness cuts at the first of its stops."""
    model, tokenizer = InRaForCausalLM.from_pretrained(inra), load_tokenizer(inra)
    prompts = [context for context, _ in REQUESTS[:2]]
    until = {"until": ["<answer>"], "max_gen_toks": 12, "do_sample": False}
    texts = {}
    for alpha in (0.0, 0.5):
        lm = harness.InRaLM(model, alpha, tokenizer=tokenizer, batch_size=2)
        texts[alpha] = lm.generate_until(instances([(prompt, until) for prompt in prompts], "generate_until"))
        for prompt, text in zip(prompts, texts[alpha], strict=True):
            ids = tokenizer(prompt, return_tensors="pt")
            tokens = model.generate(**ids, alpha=alpha, max_new_tokens=12, do_sample=False)
            alone = tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert text == alone.split("<answer>")[0] and text
    assert texts[0.0] != texts[0.5]


def test_the_demos_tasks_are_read_with_right_answers():
    folder = PROJECT / "conf" / "base" / "tax_tasks"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    tasks = harness.load_tasks(names, folder, num_fewshot=None, limit=5)
    assert [task.name for task in tasks] == names == ["sums_choice", "sums_written"]
    for task in tasks:
        problems = task.loaded["tasks"][task.name].eval_docs
        assert len({problem["question"] for problem in problems}) == len(problems) >= 100
        for problem in problems:
            first, *rest = problem["question"].split(": ")[1].removesuffix(" =").split()
            total = int(first) + sum(int(sign + term) for sign, term in zip(rest[::2], rest[1::2], strict=True))
            assert problem["answer"] == problem["choices"][problem["label"]] == str(total)
            assert len(set(problem["choices"])) == 4
    with pytest.raises(InputError, match=r"sums_written generates up to 160 tokens .* have 160 positions"):
        harness.check_new_tokens(tasks[1], 160)
    harness.check_new_tokens(tasks[1], 161)
    harness.check_new_tokens(tasks[0], 1)  # nothing is generated


FUNCTIONS = """
from functools import partial
from lm_eval.api.samplers import ContextSampler
class Sampler(ContextSampler):
    pass
def ask(doc):
    return "{asked} " + doc["question"]
def keep(docs, name):
    return docs
keep_all = partial(keep, name="all")
"""
OF_FUNCTIONS = """
task: written
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
process_docs: !function own.keep_all
doc_to_text: !function own.ask
doc_to_target: answer
fewshot_config: {{sampler: !function own.Sampler, doc_to_choice: !function builtins.len}}
generation_kwargs: {{until: ["."]}}
metric_list: [{{metric: exact_match, aggregation: !function own.ask}}]
"""


def test_functions_of_a_task_are_described_by_what_they_do(tmp_path):
    """Not by where they are in memory, or the next run would not find what this one measured."""
    data = tmp_path / "sums.jsonl"
    data.write_text('{"question": "1 + 1 =", "answer": "2"}')

    def describe(folder, asked):
        folder.mkdir()
        (folder / "own.py").write_text(FUNCTIONS.replace("{asked}", asked))
        (folder / "written.yaml").write_text(OF_FUNCTIONS.format(data=data))
        [task] = harness.load_tasks(["written"], folder, num_fewshot=None, limit=None)
        return task.description

    first, again, other = (describe(tmp_path / name, asked) for name, asked in (("a", "Q:"), ("b", "Q:"), ("c", "?")))
    assert first == again != other
    text = str(first)
    assert " at 0x" not in text and text.count('return "Q: "') == 3 and text.count("return docs") == 2
    assert "class Sampler(ContextSampler)" in text and "builtins.len" in text


def test_every_model_is_asked_with_the_same_examples(inra):
    """Those of its seed: the harness itself goes on drawing where the last call stopped."""
    [task] = harness.load_tasks(["sums_written"], PROJECT / "conf" / "base" / "tax_tasks", num_fewshot=None, limit=6)
    task.loaded["tasks"]["sums_written"].set_config("num_fewshot", 2)  # it says 0, which load_tasks keeps
    asked = []

    class Asked(harness.InRaLM):
        def generate_until(self, requests, disable_tqdm=True):
            asked.append([one.args[0] for one in requests])
            return [""] * len(requests)

    for alpha, seed in ((0.0, 1), (1.0, 1), (0.0, 2)):
        harness.measure(Asked(inra, alpha), task, limit=6, apply_chat_template=False, seed=seed)
    assert asked[0] == asked[1] != asked[2]
    assert len(set(asked[0])) == 6 and all(context.count(" = ") >= 2 for context in asked[0])
