"""Runs in vLLM's environment: `python refuse_options.py cases.json answers.json` says how vLLM refuses configurations.

A case is options of the engine, and variables of the environment. Nothing is loaded.
"""

import json
import os
import sys

os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins

load_general_plugins()
with open(sys.argv[1]) as file:
    cases = json.load(file)
answers = {}
for name, case in cases.items():
    os.environ |= case["environment"]
    try:
        EngineArgs(**case["options"]).create_engine_config()
        answers[name] = ""
    except (ValueError, NotImplementedError) as error:
        answers[name] = str(error)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
with open(sys.argv[2], "w") as file:
    json.dump(answers, file)
