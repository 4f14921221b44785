"""What other trainers are given: files that parse, and columns that the kept rows have."""

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from test_cli import call

from clues.data.formats import read_rows

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples are not here")


@pytest.fixture
def kept(tmp_path) -> Path:
    """Rows in the form in which the demo's kept rows come out: that in which they went in."""
    assert call("demo", "--data-only", "--out", tmp_path)[0] == 0
    return tmp_path / "input" / "silos" / "harbor-bank.jsonl"


def columns(file: Path) -> set[str]:
    return set(json.loads(file.read_text(encoding="utf-8").splitlines()[0]))


def test_llama_factory_reads_columns_that_are_there(kept) -> None:
    folder = EXAMPLES / "llama-factory"
    known = json.loads((folder / "dataset_info.json").read_text())
    train = yaml.safe_load((folder / "train.yaml").read_text())
    entry = known[train["dataset"]]
    assert entry["file_name"] == "kept.jsonl"
    assert entry["formatting"] == "alpaca"
    # Once any column is named, those that are not are not read.
    assert entry["columns"] == {"prompt": "instruction", "query": "input", "response": "output"}
    assert {"instruction", "output"} <= columns(kept)


def test_axolotl_reads_columns_that_are_there(kept) -> None:
    (source,) = yaml.safe_load((EXAMPLES / "axolotl" / "train.yaml").read_text())["datasets"]
    assert source == {"path": "kept.jsonl", "ds_type": "json", "type": "alpaca"}
    assert {"instruction", "output"} <= columns(kept)


def test_trl_gets_prompts_and_completions(kept, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = trl_example().prompts_and_completions(str(kept))
    first = json.loads(kept.read_text(encoding="utf-8").splitlines()[0])
    assert rows[0] == {"prompt": first["instruction"], "completion": first["output"]}
    assert len(rows) == 200


def test_trl_gets_all_that_was_scored_of_a_row(tmp_path, monkeypatch) -> None:
    """Without the text beside the question a model learns answers to nothing."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    told = {"instruction": "Read the table.", "input": "a | 1", "output": "One.", "source": "x"}
    plain = {"instruction": "Name one.", "input": None, "output": "One.", "source": "y"}
    file = tmp_path / "kept.jsonl"
    file.write_text(f"{json.dumps(told)}\n{json.dumps(plain)}\n")
    rows = trl_example().prompts_and_completions(str(file))
    scored = [sample.prompt[0].content for sample in read_rows(file).samples]
    assert list(rows["prompt"]) == scored
    assert list(rows["completion"]) == ["One.", "One."]
    other = tmp_path / "told.jsonl"
    other.write_text(json.dumps({**told, "system": "Be brief."}) + "\n")
    with pytest.raises(SystemExit, match="system"):
        trl_example().prompts_and_completions(str(other))


def trl_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "trl" / "train.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", ["llama-factory", "axolotl", "trl"])
def test_all_take_as_many_steps_as_a_run_does_and_talk_to_nobody(folder) -> None:
    """Fewer rows must not mean fewer steps, or the comparison is of steps."""
    file = next(p for p in (EXAMPLES / folder).iterdir() if p.stem == "train")
    text = file.read_text()
    assert "max_steps" in text
    assert "epochs" not in text
    assert "wandb" not in text
    assert (EXAMPLES / folder / "README.md").exists()


NOTEBOOKS = (
    ("demo", ("north-clinic", "kept.jsonl", "select-reply")),
    ("score", ("rows kept, threshold", "checked rows", "report.html")),
)


def stored(name: str) -> dict:
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "store it without outputs"
    return notebook


@pytest.mark.walk
@pytest.mark.parametrize(("name", "shown"), NOTEBOOKS)
def test_the_cells_of_a_notebook_run(small_built_in, capsys, name, shown) -> None:
    """In this process, with a base model of no size: the code, without the program of notebooks."""
    space: dict = {}
    values: list[str] = []
    for cell in stored(name)["cells"]:
        if cell["cell_type"] != "code":
            continue
        *steps, last = ast.parse("".join(cell["source"])).body
        if not isinstance(last, ast.Expr):
            steps, last = [*steps, last], None
        exec(compile(ast.Module(steps, []), name, "exec"), space)
        if last:
            values.append(repr(eval(compile(ast.Expression(last.value), name, "eval"), space)))
    text = "".join([capsys.readouterr().out, *values])
    assert [word for word in shown if word not in text] == []


@pytest.mark.long
@pytest.mark.parametrize(("name", "shown"), NOTEBOOKS)
def test_a_notebook_runs(name, shown) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.reads(json.dumps(stored(name)), as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    text = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert [word for word in shown if word not in text] == []
