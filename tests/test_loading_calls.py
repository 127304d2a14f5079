"""Calls that decide whether code comes with data: what ruff's S and TID251 rules cannot look into.

Left out, `trust_remote_code` makes Transformers ask on the terminal, and `use_safetensors` lets it fall back to
pickled weights.
"""

import ast
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).parents[1]
MODULES = sorted([*(PROJECT / "src").rglob("*.py"), *(PROJECT / "benchmarks").rglob("*.py")])
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


def offences(source: str) -> list[str]:
    """The calls in a module that might run code from a checkpoint, or text in a shell."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if given.get("trust_remote_code", "False") != "False" or "shell" in given:
            found.append(ast.unparse(call))
        if name.endswith(("AutoConfig.from_pretrained", "AutoModelForCausalLM.from_pretrained")):
            needed = {"trust_remote_code"} | ({"use_safetensors"} if "Model" in name else set())
            if not needed <= given.keys():
                found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PROJECT).as_posix())
def test_source(file):
    assert offences(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_notebooks(file):
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.cell_type == "code" and not cell.source.startswith("%"):
            assert offences(cell.source) == []


@pytest.mark.parametrize(
    "call",
    [
        "AutoConfig.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "X.from_pretrained(path, trust_remote_code=flag)",
        "transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)",
        "subprocess.run(line, shell=flag)",
    ],
)
def test_an_offence_is_found(call):
    assert offences(f"model = {call}")


def test_a_call_that_says_what_it_trusts_is_not_an_offence():
    assert offences("AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, use_safetensors=True)") == []
