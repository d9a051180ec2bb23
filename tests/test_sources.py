"""What no line of the toolkit does: pickles are not read, texts are not run, code of the hub is not fetched."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("finetune", "datasets", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.hub", "torch.package")
}
FORBIDDEN_CALLS = {
    *("eval", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.hub.load"),
    *("torch.jit.load", "pd.read_pickle", "pandas.read_pickle", "tarfile.extract", "tar.extract", "tar.extractall"),
}
SAFE_WHEN = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
RUNS_TEXT = {"finetune/export/fresh_process.py", "finetune/core/door.py"}
"""The proof's process runs a function of the toolkit, whose source it is sent; the door runs an empty text."""


def find_faults(source: str) -> list[str]:
    """What a source does that it must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            key, value = SAFE_WHEN.get(name, ("", None))
            if name in FORBIDDEN_CALLS or name == "exec" or (key and given.get(key) != str(value)):
                found.append(name)
            found += [word for word in ("shell", "trust_remote_code") if given.get(word, "False") != "False"]
            found += [word for word in ("weights_only",) if given.get(word, "True") != "True"]
            found += [word for word in ("allow_pickle",) if given.get(word, "False") != "False"]
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "tar.extractall(folder)",
    ],
)
def test_is_found(source: str) -> None:
    assert find_faults(source)


def test_no_source_reads_pickles_or_runs_texts() -> None:
    assert len(SOURCES) > 200
    faults = {str(path.relative_to(ROOT)): find_faults(path.read_text(encoding="utf-8")) for path in SOURCES}
    found = {name: what for name, what in faults.items() if what}
    assert found == {name: ["exec"] for name in sorted(RUNS_TEXT)}


def test_every_model_is_read_from_safetensors() -> None:
    harmless = ("AlignConfig", "AlignProcessor", "AutoImageProcessor", "LoraConfig")  # hold no weights
    calls = [
        node
        for path in SOURCES
        if path.is_relative_to(ROOT / "finetune")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")
    ]
    models = [call for call in calls if not ast.unparse(call.func).startswith(harmless)]
    assert len(models) == 3
    assert all("use_safetensors=True" in ast.unparse(call) for call in models)
    assert all("local_files_only=True" in ast.unparse(call) for call in calls if "LoraConfig" not in ast.unparse(call))
