"""Runs in vLLM's environment: `python ask_engine.py job.json answers.json` asks an engine in this process.

A job is a checkpoint, its architecture, options of the engine, and phases; each phase is a list of requests. The
requests of a phase that is `staggered` arrive one a step of the engine, and those that say `abort` are given up two
steps after they came.
"""

import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

from vllm import LLM, SamplingParams

with open(sys.argv[1]) as file:
    job = json.load(file)
llm = LLM(
    job["model"],
    hf_overrides={"architectures": [f"InRa{job['architecture']}"]},
    skip_tokenizer_init=True,
    dtype="float32",
    enforce_eager=True,
    block_size=32,
    disable_log_stats=False,
    **job["options"],
)


def sampling(request):
    greedy = {"temperature": 0} if request.get("n", 1) == 1 else {"temperature": 1, "top_k": 1, "n": request["n"]}
    return SamplingParams(
        **greedy,
        max_tokens=request["max_tokens"],
        prompt_logprobs=request.get("prompt_logprobs"),
        ignore_eos=True,
        detokenize=False,
        extra_args=request["arguments"],
    )


def prompt(request):
    return {"prompt_token_ids": request["ids"], "cache_salt": request["cache_salt"]}


def answer(request, output):
    logprobs = None
    if request.get("prompt_logprobs") is not None:
        pairs = zip(request["ids"][1:], output.prompt_logprobs[1:], strict=True)
        logprobs = [at[token].logprob for token, at in pairs]
    return {"tokens": [list(one.token_ids) for one in output.outputs], "prompt_logprobs": logprobs}


def staggered(requests):
    engine, finished, ends = llm.llm_engine, {}, {}
    for index, request in enumerate(requests):
        engine.add_request(str(index), prompt(request), sampling(request))
        if request.get("abort"):
            ends[index + 2] = str(index)
        if index in ends:
            engine.abort_request([ends[index]])
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
    return [
        None if request.get("abort") else answer(request, finished[str(index)])
        for index, request in enumerate(requests)
    ]


def together(requests):
    outputs = llm.generate(
        [prompt(request) for request in requests], [sampling(request) for request in requests], use_tqdm=False
    )
    return [answer(request, output) for request, output in zip(requests, outputs, strict=True)]


phases = [
    staggered(phase["requests"]) if phase["staggered"] else together(phase["requests"]) for phase in job["phases"]
]
counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
with open(sys.argv[2], "w") as file:
    json.dump({"phases": phases, "counters": counters}, file)
