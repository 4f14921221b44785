import hashlib
import json
from pathlib import Path

import pytest

from clues.config import Recipe
from docs.reference import explanations, models, reference

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def test_the_page_is_made_of_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run make reference"


@pytest.mark.parametrize(("path", "model"), models().items())
def test_every_setting_is_explained_and_nothing_else(path, model) -> None:
    said = explanations(model)
    assert set(said) == set(model.model_fields), f"{path}: docstring section Attributes"
    assert all(len(text.split()) > 1 for text in said.values())


def test_the_walk_finds_what_lies_deep() -> None:
    found = models()
    assert {"recipe.public.NAME.validation.NAME", "evaluate.judge", "combine.server"} <= set(found)
    assert len(found) > 15


def test_values_and_defaults_are_those_of_the_settings() -> None:
    page = reference()
    assert "| `rank` | whole number ≥ 1, ≤ 1024 | `16` |" in page
    assert "| `schema` | text or `null` | `null` |" in page, "the key of the file, not of the code"
    assert "`float32`, `bfloat16`, `float16`, `float64` | `float32`" in page


def test_a_recipes_hash_is_that_of_its_content_alone() -> None:
    """The oracle of any move of the settings: places of files do not count, contents do."""
    file = {"path": "a.jsonl", "weight": 1.0, "sha256": "0" * 64}
    public = {"law": {"validation": {"en": file}, "anchor": file}}
    recipe = Recipe.model_validate({"public": public, "model": {"name": "x"}})
    content = json.loads(recipe.model_dump_json())
    for entry in (content["public"]["law"]["anchor"], content["public"]["law"]["validation"]["en"]):
        del entry["path"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert recipe.hash == hashlib.sha256(text.encode()).hexdigest()
    del content["threshold"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert recipe.scoring_hash == hashlib.sha256(text.encode()).hexdigest()
