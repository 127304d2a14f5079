"""The worker process that verifiers run in: it stops what hangs or eats memory, and never outlives its parent."""

import importlib
import logging
import signal
import subprocess
import sys
import time

import psutil
import pytest

from realign_pipes.tasks import grading
from realign_pipes.tasks.grading import Attempt, grade, is_correct
from realign_pipes.tasks.parameters import DatasetTask, ReasoningGymTask

SUMS = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum")
MATHS = DatasetTask(kind="dataset", path="unused", verifier="math")
EXACT = DatasetTask(kind="dataset", path="unused", verifier="exact")
POWER = "\\boxed{9999999^{99999999}}"
"""One power of two Python integers, which takes years."""


def attempt(answered: str, answer: str = "4", task=MATHS, problem_id: str = "p") -> Attempt:
    return Attempt(problem_id, task, "", answered, answer, "{}")


def test_verdicts_are_those_of_this_process_in_order() -> None:
    attempts = [
        attempt(text, answer, task)
        for task in (MATHS, EXACT, SUMS)
        for answer in ("4", "1/2")
        for text in ("4", "\\boxed{4}", "\\boxed{0.5}", "<answer>4</answer>", "<think>4", "", "\ud800", "\0")
    ]
    expected = [is_correct(one.task, one.prompt, one.completion, one.answer, one.metadata) for one in attempts]
    assert list(grade(attempts)) == expected
    assert sorted(set(expected)) == [False, True]


def test_a_verifier_that_hangs_is_stopped_and_its_completion_wrong(monkeypatch, caplog) -> None:
    monkeypatch.setattr(grading, "TIME_LIMIT", 2)
    attempts = [
        attempt("\\boxed{4}", problem_id="before"),
        attempt(POWER, problem_id="power"),
        attempt("\\boxed{4}", problem_id="after"),
    ]
    with caplog.at_level(logging.WARNING):
        assert list(grade(attempts)) == [True, False, True]
    assert [record.getMessage() for record in caplog.records if record.name == grading.__name__] == [
        "power: counted as wrong, as grading it took more than 2 s"
    ]


@pytest.fixture
def verifier(tmp_path, monkeypatch):
    """`verifier(body)` replaces the grading of an Attempt `one`, in a worker of its own that can import it."""

    def install(body: str) -> None:
        (tmp_path / "made_up_verifier.py").write_text(f"import os, signal\n\ndef verify(one):\n    {body}\n")
        monkeypatch.setattr(grading, "_is_correct", importlib.import_module("made_up_verifier").verify)

    monkeypatch.syspath_prepend(tmp_path)
    grading._worker.cache_clear()
    yield install
    pool = grading._worker()
    pool.close()
    pool.join()
    grading._worker.cache_clear()
    sys.modules.pop("made_up_verifier")


def test_a_worker_that_dies_is_replaced_and_the_completion_wrong(verifier, caplog) -> None:
    """As when the system runs out of memory, or a C stack overflows."""
    verifier("return os.kill(os.getpid(), signal.SIGKILL) if one.completion == 'x' else True")
    with caplog.at_level(logging.WARNING):
        assert list(grade([attempt("4"), attempt("x", problem_id="x"), attempt("4")])) == [True, False, True]
    assert "x: counted as wrong, as grading it failed: ProcessExpired" in caplog.text


def test_a_verifier_gets_so_much_memory_and_no_more(verifier, caplog) -> None:
    verifier("return len(bytearray(int(one.completion))) > 0")
    few, many = str(grading.MEMORY_LIMIT // 4), str(grading.MEMORY_LIMIT * 2)
    with caplog.at_level(logging.WARNING):
        assert list(grade([attempt(few), attempt(many, problem_id="many"), attempt(few)])) == [True, False, True]
    assert "many: counted as wrong, as grading it failed: MemoryError" in caplog.text


def test_mistakes_in_the_parameters_are_no_wrong_answers() -> None:
    task = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options={"terms": 5})
    with pytest.raises(ValueError, match=r"chain_sum cannot be made with .*terms"):
        list(grade([attempt("<answer>4</answer>", task=task)]))


@pytest.mark.parametrize("completion", ["\\\\boxed{4}", POWER.replace("\\", "\\\\")], ids=["idle", "busy"])
def test_the_worker_ends_when_its_parent_is_killed(completion: str) -> None:
    """Idle, it sees its pipe closed; busy, an alarm without a handler ends it."""
    script = f"""
import multiprocessing, threading, time
from realign_pipes.tasks import grading
from realign_pipes.tasks.parameters import DatasetTask
grading.TIME_LIMIT = 2
task = DatasetTask(kind="dataset", path="unused", verifier="math")
def attempts(text): return [grading.Attempt("p", task, "", text, "4", "{{}}")]
if __name__ == "__main__":
    list(grading.grade(attempts("\\\\boxed{{4}}")))
    threading.Thread(target=list, args=[grading.grade(attempts("{completion}"))], daemon=True).start()
    time.sleep(0.5)
    [worker] = multiprocessing.active_children()
    print(worker.pid, flush=True)
    time.sleep(3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert _is_alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(600):  # it takes seconds; a minute means that it hangs
        if not _is_alive(worker):
            return
        time.sleep(0.1)
    psutil.Process(worker).kill()
    pytest.fail("The worker outlived its parent.")


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which waits for this system's init
    except psutil.NoSuchProcess:
        return False
