"""Another alpha for each turn: what a schedule of two turns gains over one alpha, on the demo's InRa model.

    python benchmarks/turns.py
    python benchmarks/turns.py --env smoke --problems 2

Needs the data of a finished run in that environment. The user's first turn is a long sum, which needs thinking, and the
second a short one, which needs little. Every pair of alphas answers them greedily, in two ways: each sum in a context
of its own, and as a conversation. The replies of a conversation are those of `realign_pipes.paper.converse`, written
here for all conversations at a time, without its caches. The page of the default run's whole set goes to docs/turns.md,
others are printed.
"""

from itertools import product
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from page_command import PROJECT, write_page

ALPHAS = (0.0, 0.25, 1.0)
TURNS = ("sums_long", "sums_short")
HEAD = [
    "alphas",
    "long sum % / tokens",
    "short sum % / tokens",
    "both: mean % / tokens",
    "less alpha 0 throughout [95 %]",
    "short sum, in the conversation % / tokens",
]


def main(env: str, limit: int | None) -> str:
    """The page."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import numpy as np

    from realign_pipes.generation.graded import Question, completion_text
    from realign_pipes.models.load import default_device, load_tokenizer
    from realign_pipes.paper import InRaForCausalLM
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, tokens_text
    from realign_pipes.sweep.evaluate import questions_of
    from realign_pipes.tasks.grading import is_correct

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        checkpoint, problems = catalog.load("inra_checkpoint"), catalog.load("evaluation_set")
        tasks = catalog.load("params:data_prep").tasks
        new_tokens = catalog.load("params:alpha_sweep").sampling.max_new_tokens
    tokenizer = load_tokenizer(checkpoint)
    model = InRaForCausalLM.from_pretrained(checkpoint).to(default_device())
    of_task = {name: [row for row in questions_of(problems, tasks) if row.task is tasks[name]] for name in TURNS}
    count = min(limit or len(problems), *map(len, of_task.values()))
    long, short = (of_task[name][:count] for name in TURNS)

    def answers(prompts: list[str], questions: list[Question], alpha: float) -> tuple[Any, list[str]]:
        """Whether each completion is right, and its tokens [2, N]; and the completions as they are written."""
        batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
        drawn = model.generate(**batch, alpha=alpha, do_sample=False, max_new_tokens=new_tokens)
        figures, texts = [], []
        for question, row in zip(questions, drawn[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            finished = tokenizer.eos_token_id in row
            ids = row[: row.index(tokenizer.eos_token_id) + 1] if finished else row
            texts.append(completion_text(tokenizer, ids, finished))
            right = is_correct(
                question.task, question.prompt, texts[-1], question.answer, question.metadata, question.tags
            )
            figures.append((float(right), len(ids)))
        return np.array(figures).T, texts

    def cell(figures: Any) -> str:
        right, tokens = figures.mean(axis=-1)
        return f"{percent(right)} / {tokens_text(tokens)}"

    def conversations(replies: list[str]) -> list[str]:
        """Up to the second reply. The demo's template repeats a reply as it is, and writes each turn as if alone."""
        end = f"{tokenizer.eos_token}\n"
        parts = zip(long, replies, short, strict=True)
        return [first.prompt + reply + end + second.prompt for first, reply, second in parts]

    firsts = {alpha: answers([question.prompt for question in long], long, alpha) for alpha in ALPHAS}
    alone = {alpha: answers([question.prompt for question in short], short, alpha)[0] for alpha in ALPHAS}
    together = {
        (first, second): answers(conversations(firsts[first][1]), short, second)[0]
        for first, second in product(ALPHAS, ALPHAS)
    }
    draws = np.random.default_rng(0).integers(count, size=(10_000, count))

    def both(first: float, second: float) -> Any:
        """The mean of the two turns' rights, and the sum of their tokens [2, N]."""
        return np.array([[0.5], [1.0]]) * (firsts[first][0] + alone[second])

    def difference(figures: Any) -> str:
        change = (figures - both(0.0, 0.0))[0]
        low, high = np.quantile(change[draws].mean(axis=1), (0.025, 0.975))
        return f"{percent(change.mean())} [{percent(low)}, {percent(high)}]"

    rows = [
        [
            f"{alpha_text(first)}, {alpha_text(second)}",
            cell(firsts[first][0]),
            cell(alone[second]),
            cell(both(first, second)),
            difference(both(first, second)),
            cell(together[first, second]),
        ]
        for first, second in sorted(together, key=lambda pair: (pair[0] != pair[1], pair))
    ]
    lines = [
        "# Another alpha for each turn",
        "",
        "Made by `python benchmarks/turns.py` after `make run`: right answers in percent / mean tokens of greedy",
        f"replies to {count} pairs of sums of the sweep, at each pair of alphas. The first sum has three terms and",
        "needs thinking, the second has two and needs little. The last column but one is the difference in right",
        "answers from alpha 0 for both, in points, paired.",
        "",
        markdown_table(Cells(HEAD, rows, left=1), None),
        "But for the last column, **each sum has a context of its own**: these are not conversations. There the",
        "right alpha differs by turn. The long sum loses right answers already at 0.25; the short one loses none",
        "there, for a quarter of the tokens, and a fifth of them at 1. So 0 and then 0.25 answers as many as 0",
        "throughout, in fewer tokens, which neither of the other single alphas does; 0.25 and then 0 does not either.",
        "",
        "**The demo's model cannot hold a conversation.** It was trained on single sums, and after a first one it",
        "hardly ever gets the second right, whatever the alphas (last column; the first turn is the same). What a",
        "schedule by turn does to one that can: [dialogues](dialogue.md#another-alpha-for-each-turn).",
        "",
        "How to: [as a library](how_to/as_a_library.md#another-alpha-for-each-turn), and [on the",
        "server](how_to/serve_it.md#another-alpha-for-each-turn).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_page(__doc__, "turns.md", main)
