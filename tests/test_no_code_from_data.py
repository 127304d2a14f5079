"""Nothing in the source executes code from data, or could after a change that nobody noticed."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FILES = sorted([*(PROJECT / "src").rglob("*.py"), *(PROJECT / "benchmarks").rglob("*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *(
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "numpy.load",
        "np.load",
        "pandas.read_pickle",
        "pd.read_pickle",
    ),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system", "os.popen"),
    *("sympy.sympify", "sympify", "parse_expr", "subprocess.getoutput", "Template", "jinja2.Template"),
}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")


def offences(source: str) -> list[str]:
    """What in a module executes data, or may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
            found += sorted(name for name in names if name.split(".")[0] in MODULES or name in CALLS)
        elif isinstance(node, ast.Call):
            name, given = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in CALLS:
                found.append(name)
            if "trust_remote_code" in given and ast.unparse(given["trust_remote_code"]) != "False":
                found.append(f"trust_remote_code={ast.unparse(given['trust_remote_code'])}")
            if "allow_pickle" in given or "weights_only" in given:
                found.append(name)
            if "shell" in given and ast.unparse(given["shell"]) != "False":
                found.append("shell=")
            if name.endswith("Environment") and ast.unparse(given.get("autoescape", ast.Constant(None))) != "True":
                found.append("Environment without autoescape")
            if name.endswith(("AutoConfig.from_pretrained", "AutoModelForCausalLM.from_pretrained")) and (
                "trust_remote_code" not in given  # left out, Transformers asks on the terminal
            ):
                found.append(f"{name} without trust_remote_code")
            if name.endswith("AutoModelForCausalLM.from_pretrained") and "use_safetensors" not in given:
                found.append(f"{name} without use_safetensors")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PROJECT).as_posix())
def test_source(file):
    assert offences(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("notebook", sorted((PROJECT / "notebooks").glob("*.ipynb")), ids=lambda file: file.name)
def test_notebooks(notebook):
    import nbformat

    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    source = "\n".join("pass" if line.startswith("%") else line for cell in cells for line in cell.splitlines())
    assert offences(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "def f(text):\n    exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "import numpy\nnumpy.load(path)",
        "import yaml\nyaml.load(text)",
        "AutoConfig.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "tokenizer = X.from_pretrained(path, trust_remote_code=flag)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "subprocess.run(line, shell=True)",
        "Environment(loader=loader)",
        "jinja2.Environment(autoescape=False)",
        "np.load(path, allow_pickle=True)",
        "from sympy.parsing.sympy_parser import parse_expr\nparse_expr(text)",
    ],
)
def test_an_offence_is_found(source):
    assert offences(source)


def test_methods_of_the_same_name_are_none():
    assert offences("model.eval()\nre.compile(pattern)\nframe.eval\nEnvironment(autoescape=True)") == []


def test_every_template_is_rendered_with_autoescape():
    """`safe` and Markup switch it off: only for Plotly's own script and its figures."""
    for file in (PROJECT / "src").rglob("*.jinja"):
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", file.read_text(encoding="utf-8")), file
    uses = [line.strip() for file in FILES for line in file.read_text().splitlines() if "Markup(" in line]
    assert len(uses) == 2 and "get_plotlyjs" in uses[0] and "to_html" in uses[1]
