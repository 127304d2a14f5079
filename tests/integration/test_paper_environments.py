"""The environments of the paper's models: each runs whole on random models of the same architecture, with a tokenizer
and a chat template like theirs, and on rows in the published data sets' columns."""

import re
import shutil
from pathlib import Path

import datasets
import huggingface_hub.constants
import pandas as pd
import pytest
import torch
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from realign_pipes.config import ConfigLoader
from realign_pipes.hooks import check_parameters
from realign_pipes.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]
ENVIRONMENTS = ("paper_trra", "paper_inra", "dler")

BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = (
    "{{ bos_token }}{% for one in messages %}{% if one['role'] == 'user' %}" + USER + "{{ one['content'] }}{% else %}"
    "" + ASSISTANT + "{{ one['content'].split('</think>')[-1] }}" + END + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "<think>\n{% endif %}"
)
"""As DeepSeek-R1's distilled models: the thinking of earlier turns is left out, and the prompt opens the next."""

INSTRUCTION = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
TINY = {
    "generation": {"engine": "transformers"},
    "data_prep": {
        "calibration": {"limit": 5, "min_tokens": 20, "max_tokens": 120},
        "tasks": {"aime24": {"samples": 2}, "aime25": {"samples": 2}, "math500": {"samples": 1}},
    },
    "teachers": {"batch_size": 2},
    "trra": {"steps": 2, "batch_size": 2, "micro_batch_size": 1, "save_steps": 2, "chunk_tokens": 64},
    "inra": {"steps": 2, "batch_size": 2, "save_steps": 2},
    "alpha_sweep": {"sampling": {"max_new_tokens": 6, "batch_size": 32}, "bootstrap_samples": 20},
}


def make_tokenizer():
    """One token a byte; the sequence's first token is written by the template, and added by the tokenizer if asked."""
    tokens = [END, BEGIN, USER, ASSISTANT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, BEGIN])
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in (USER, ASSISTANT, "<think>", "</think>")])
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, pad_token=END, chat_template=TEMPLATE
    )


def write_model(folder, seed, padding, layers=2):
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer) + padding, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        initializer_range=0.2, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=0, temperature=0.6, top_p=0.95, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def publish_model(cache, repo_id, revision, write=write_model, **options):
    """Put a model where huggingface_hub keeps what it has downloaded."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    commit = revision or "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    write(repository / "snapshots" / commit, **options)


def publish(path, split, rows):
    """Rows in the format of the hub, in the working folder: `datasets` takes a folder of that name before the hub's."""
    (path / "data").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(path / "data" / f"{split}-00000-of-00001.parquet")


def publish_data(root):
    """The columns of OpenR1-Math-220k, aime_2024, aime_2025 and MATH-500, as published."""
    rows = []
    for number in range(6):
        answer = str(number + 4)
        trace = f"<think>\n{number} and 4 is {answer}. Wait, once more.\n</think>\n\nIt is \\boxed{{{answer}}}."
        wrong = "<think>\nhm\n</think>\n\n\\boxed{99}"
        rows.append(
            {
                "problem": f"What is {number} + 4?",
                "solution": f"We add: ${answer}$.",
                "answer": answer,
                "problem_type": "Algebra",
                "question_type": "math-word-problem",
                "source": "olympiads",
                "uuid": f"uuid-{number}",
                "is_reasoning_complete": [True, True],
                "generations": [trace, wrong],
                "correctness_math_verify": [True, False],
                "correctness_llama": None,
                "finish_reasons": ["stop", "stop"],
                "correctness_count": 1,
                "messages": [
                    {"role": "user", "content": f"What is {number} + 4?"},
                    {"role": "assistant", "content": trace},
                ],
            }
        )
    publish(root / "open-r1/OpenR1-Math-220k", "train", rows)
    aime = [
        {"id": number, "problem": f"Find {number} times 3.", "solution": "So.", "answer": str(3 * number),
         "url": "u", "year": "2024"}
        for number in (60, 61)
    ]  # fmt: skip
    publish(root / "HuggingFaceH4/aime_2024", "train", aime)
    aime = [{**row, "problem": f"Of 2025: {row['problem']}", "year": "2025"} for row in aime]
    publish(root / "yentinglin/aime_2025", "train", aime)
    maths = [
        {"problem": f"Simplify $\\frac{{{number}}}{{2}}$.", "solution": "So.", "answer": f"\\frac{{{number}}}{{2}}",
         "subject": "Algebra", "level": 2, "unique_id": f"test/algebra/{number}.json"}
        for number in (3, 5, 7)
    ]  # fmt: skip
    publish(root / "HuggingFaceH4/MATH-500", "test", maths)


@pytest.fixture
def run(copy_project, monkeypatch):
    """`run(env)` runs `realign` in a copy of the project, with models in the hub's cache; its data folder."""
    root = copy_project()
    bootstrap_project(PROJECT)
    monkeypatch.chdir(root)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    publish_data(root)

    def start(env):
        loader = ConfigLoader(root / "conf", env, **CONFIG_LOADER_ARGS)
        pair = [loader["catalog"][f"{name}_model"] for name in ("reference", "aligned")]
        padding = (10, 40) if env == "paper_inra" else (10, 10)  # real heads: 151,936 and 152,064 rows
        for seed, (entry, rows) in enumerate(zip(pair, padding, strict=True)):
            publish_model(root / "hub", entry["repo_id"], entry.get("revision"), seed=seed, padding=rows)
        for seed, repo_id in enumerate(loader["parameters"]["alpha_sweep"]["others"].values(), start=2):
            layers = 3 if repo_id.endswith("InRa") else 2  # saved with their adapter as an ordinary layer
            publish_model(root / "hub", repo_id, None, seed=seed, padding=7, layers=layers)
        with KedroSession.create(root, env=env, runtime_params=TINY) as session:
            session.run(pipeline_names=["realign"])
        return root / "data" / env

    return start


def candidates(data):
    table = pd.read_csv(data / "07_model_output" / "sweep_results.csv")
    return list(table[table["task"] == "all"]["candidate"]), table


def check_data(data):
    """What the data sets' columns became."""
    samples = datasets.load_from_disk(str(data / "03_primary" / "calibration_samples"))
    assert len(samples) == 10 and sum(samples["correct"]) == 5, "both traces of each of the 5 rows, graded"
    for row in samples:
        assert row["prompt"] == f"{BEGIN}{USER}{row['question']}{INSTRUCTION}{ASSISTANT}<think>\n"
        assert row["prompt_ids"].count(1) == 1 and row["prompt_ids"][0] == 1, "the first token once"
        assert row["completion_ids"][-1] == 0 and not row["completion"].startswith("<think>")
    kept = datasets.load_from_disk(str(data / "05_model_input" / "calibration_set"))
    assert len(kept) == 5 and all(kept["correct"])
    solutions = datasets.load_from_disk(str(data / "05_model_input" / "short_solutions"))
    assert all(re.fullmatch(r"</think>\n\nIt is \\boxed\{\d+\}\.", text) for text in solutions["completion"])
    problems = datasets.load_from_disk(str(data / "05_model_input" / "evaluation_set"))
    assert problems.to_pandas().groupby("task").size().to_dict() == {"aime24": 2, "aime25": 2, "math500": 3}
    assert all(INSTRUCTION in prompt for prompt in problems["prompt"])


def test_trra_of_the_paper(run):
    data = run("paper_trra")
    check_data(data)
    found, table = candidates(data)
    others = ["other-theirs-0.5", "other-theirs-10", "other-theirs-2", "other-theirs-iter1-2"]
    assert found == [
        "reference", "aligned", "merge-0.5", "merge-1.5", "merge-2",
        "trra-0.5", "trra-1.5", "trra-2", "trra-5", "trra-10", "trra-iter1-2", "trra-iter2-2",
        "inra-0.5", "inra-1", *others,
    ]  # fmt: skip
    assert set(zip(table["task"], table["samples"], strict=True)) == {
        ("aime24", 2), ("aime25", 2), ("math500", 1), ("all", 2),
    }  # fmt: skip
    assert "other-theirs-2" in (data / "08_reporting" / "sweep_table.md").read_text()
    index = yaml.safe_load((data / "05_model_input" / "teacher_cache" / "reference" / "index.json").read_text())
    assert len(index["lengths"]) == 5


def test_inra_of_the_paper(run):
    data = run("paper_inra")
    check_data(data)
    inra = ["inra--0.25", "inra-0", "inra-0.25", "inra-0.5", "inra-0.75", "inra-1"]
    assert candidates(data)[0] == ["reference", "aligned", *inra, "other-theirs-1"]
    assert not list((data / "06_models" / "trra").iterdir()), "no student is trained"
    frames = [
        pd.read_parquet(data / "07_model_output" / "generations" / f"{name}.parquet")["completion"]
        for name in ("reference", "inra-0")
    ]
    assert frames[0].equals(frames[1])


def test_a_newer_aligned_model(run):
    data = run("dler")
    check_data(data)
    assert candidates(data)[0] == [
        "reference", "aligned", "merge-0.5", "merge-1.5", "merge-2",
        "trra-0.5", "trra-1.5", "trra-2", "trra-2-unmasked", "trra-3", "trra-5", "inra-0.5", "inra-1",
    ]  # fmt: skip


LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""Special tokens of Llama 3's tokenizer, in whose order they are its first ids here."""


def write_llama(folder, seed):
    """A random Llama with a tokenizer like the base models': without a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate([*LLAMA, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*LLAMA])
    backend.post_processor = processors.TemplateProcessing(single=f"{LLAMA[0]} $A", special_tokens=[(LLAMA[0], 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=LLAMA[0], eos_token=LLAMA[1])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def publish_named(path, split, rows):
    """As `publish`, with a split that only the card names."""
    publish(path, split, rows)
    card = {"configs": [{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"}]}]}
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")


def publish_dialogues(root):
    """The columns of UltraChat-200k and UltraFeedback-binarized as published, and AlpacaEval's instructions."""

    def chat(*texts):
        return [{"content": text, "role": "assistant" if turn % 2 else "user"} for turn, text in enumerate(texts)]

    chats = [
        {"prompt": f"Name {number} birds.", "prompt_id": f"p{number}",
         "messages": chat(f"Name {number} birds.", "Owl.", "Shorter.", f"Emu {number}.")}
        for number in range(6)
    ]  # fmt: skip
    publish_named(root / "HuggingFaceH4/ultrachat_200k", "train_sft", chats)
    pairs = []
    for number in range(6):
        better, worse = (
            chat(f"Add {number}.", f"It is {number}."),
            chat(f"Add {number}.", "Why?" if number else "It is 0."),
        )
        pairs.append({"prompt": f"Add {number}.", "prompt_id": f"q{number}", "chosen": better, "rejected": worse,
                      "messages": better, "score_chosen": 8.0, "score_rejected": 3.5})  # fmt: skip
    publish_named(root / "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", pairs)
    raw = root / "data" / "paper_dialogue" / "01_raw"
    raw.mkdir(parents=True)
    asked = [{"instruction": f"Who was king number {number}?", "output": "Ed.", "generator": "g", "dataset": "d"}
             for number in range(3)]  # fmt: skip
    pd.DataFrame(asked).to_json(raw / "alpaca_eval.jsonl", orient="records", lines=True)


def test_dialogue_of_the_paper(copy_project, monkeypatch, scripted_judge):
    root = copy_project()
    bootstrap_project(PROJECT)
    monkeypatch.chdir(root)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    publish_dialogues(root)
    entries = ConfigLoader(root / "conf", "paper_dialogue", **CONFIG_LOADER_ARGS)["catalog"]
    for seed, name in enumerate(("reference", "aligned")):
        publish_model(root / "hub", entries[f"{name}_model"]["repo_id"], None, write=write_llama, seed=seed)
    (root / "prompt.txt").write_text("Q {question}\nA<{first}>\nB<{second}>")
    tiny = {
        "generation": {"engine": "transformers"},
        "inra": {"steps": 2, "batch_size": 2, "save_steps": 2, "dpo": {"steps": 2}},
        "alpha_sweep": {"sampling": {"max_new_tokens": 6, "batch_size": 32}, "bootstrap_samples": 20},
        "scores": {"graders": {"judge": {
            "url": f"http://127.0.0.1:{scripted_judge.server_port}", "prompt": str(root / "prompt.txt"),
        }}},
    }  # fmt: skip
    with KedroSession.create(root, env="paper_dialogue", runtime_params=tiny) as session:
        session.run(pipeline_names=["realign"])
    data = root / "data" / "paper_dialogue"

    replies = datasets.load_from_disk(str(data / "05_model_input" / "short_solutions"))
    assert sorted(replies["completion"]) == [f"Emu {number}." for number in range(6)]
    header = LLAMA[2] + "{}" + LLAMA[3] + "\n\n"
    user, assistant = header.format("user"), header.format("assistant")
    first = next(row for row in replies if row["completion"] == "Emu 2.")
    assert first["prompt"] == (
        f"{LLAMA[0]}{user}Name 2 birds.{LLAMA[4]}{assistant}Owl.{LLAMA[4]}{user}Shorter.{LLAMA[4]}{assistant}"
    )
    assert first["prompt_ids"].count(0) == 1 and first["completion_ids"][-1] == 4, "ends its turn with <|eot_id|>"
    pairs = datasets.load_from_disk(str(data / "05_model_input" / "preference_pairs"))
    assert len(pairs) == 5, "the one whose replies are equal is left out"

    inra = ["inra--0.25", "inra-0", "inra-0.25", "inra-0.5", "inra-0.75", "inra-1", "inra-1.25"]
    assert candidates(data)[0] == ["reference", "aligned", "merge-0.5", "merge-1", *inra]
    judged = pd.read_csv(data / "07_model_output" / "judge_results.csv").set_index("candidate")
    assert judged.loc["inra-0", "win_rate"] == 0.5, "its answers are the reference's"
    assert len(scripted_judge.asked) == 2 * 3 * 10, "both orders, three instructions, all but the reference"
    assert "win rate (judge)" in (data / "08_reporting" / "report.html").read_text()


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_its_parameters_are_the_papers(env, monkeypatch):
    monkeypatch.chdir(PROJECT)
    parameters = ConfigLoader(PROJECT / "conf", env, **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters)
    sampling = {
        name: parameters["alpha_sweep"]["sampling"][name] for name in ("temperature", "top_p", "max_new_tokens")
    }
    tasks = {name: task.get("samples", parameters["alpha_sweep"]["sampling"]["samples"])
             for name, task in parameters["data_prep"]["tasks"].items() if task}  # fmt: skip
    if env == "dler":
        assert sampling == {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768}
        assert tasks == {"aime24": 64, "aime25": 64, "math500": 4}
    else:
        assert sampling == {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 16384}
        assert tasks == {"aime24": 8, "aime25": 8, "math500": 8}
        assert parameters["trra"]["alphas"] == ([0.5, 1.5, 2.0, 5.0, 10.0] if env == "paper_trra" else [])
    calibration = parameters["data_prep"]["calibration"]
    assert (calibration["min_tokens"], calibration["max_tokens"]) == (4000, 8000)
    assert parameters["data_prep"]["short_solutions"] == {
        "source": "samples",
        "cut_share": 0.0,
        "max_tokens": 4096,
    }
    for stage, batch in (("trra", 16), ("inra", 128))[env == "paper_inra" :]:
        training = parameters[stage]
        assert (training["batch_size"], training["learning_rate"], training["warmup_ratio"]) == (batch, 2e-5, 0.1)


def test_the_parameters_of_dialogue_are_the_papers(monkeypatch):
    monkeypatch.chdir(PROJECT)
    parameters = ConfigLoader(PROJECT / "conf", "paper_dialogue", **CONFIG_LOADER_ARGS)["parameters"]
    check_parameters(parameters)
    inra = parameters["inra"]
    assert inra["method"] == "sft_dpo" and inra["num_adapter_layers"] == 1 and inra["init"] == "identity"
    assert 0.005 <= inra["dpo"]["beta"] <= 0.01 and 5e-7 <= inra["dpo"]["learning_rate"] <= 5e-6
    assert inra["dpo"]["loss_type"] == ["sigmoid"] and not inra["dpo"]["loss_weights"]
    assert parameters["tax"]["tasks"] == ["mmlu", "cmmlu", "gsm8k", "truthfulqa_mc2"]


@pytest.mark.parametrize("env", [*ENVIRONMENTS, "paper_dialogue"])
def test_it_can_be_planned(env, copy_project, monkeypatch):
    root = copy_project()
    shutil.rmtree(root / "src")  # nothing but conf/ is read
    bootstrap_project(PROJECT)
    monkeypatch.chdir(root)
    with KedroSession.create(root, env=env) as session:
        session.run(pipeline_names=["plan"])
    lines = (root / "data" / env / "08_reporting" / "plan.md").read_text().splitlines()
    stages = ("models", "data_prep", "teacher_logits", "trra", "inra", "alpha_sweep", "reporting", "in all")
    assert [line.split(" | ")[0] for line in lines[2:10]] == [f"| {name}" for name in stages]
    assert not [line for line in lines if line.startswith("- WARNING") and not line.startswith("- WARNING: disk")]
