"""What [[prepare.features]] may not ask for is refused by name, before any row is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.preparation.plan import Plan, plan_features
from kit.errors import SettingsError
from kit.project import Project

HEAD = """
[project]
name = "shop"
task = "{task}"

[data]
path = "rows.parquet"
label = "y"

[[data.inputs]]
name = "numbers"
columns = ["age", "income"]
nullable = true

[[data.inputs]]
name = "count"
dtype = "int64"

[[data.inputs]]
name = "color"
dtype = "string"

[[data.inputs]]
name = "window"
shape = [3]
columns = ["window"]

[model]
factory = "model:build"
{model}
"""
GOOD = """
[[prepare.features]]
columns = ["age", "income"]
missing = "median"
[[prepare.features]]
columns = ["color"]
encode = "one-hot"
"""


def planned(folder: Path, features: str, *, task: str = "classification", model: str = "") -> Plan | None:
    text = HEAD.format(task=task, model=model) + features
    (folder / "kit.toml").write_text(text, encoding="utf-8")
    return plan_features(Project.open(folder))


def entry(columns: str, more: str) -> str:
    return f"[[prepare.features]]\ncolumns = {columns}\n{more}\n"


def test_columns_without_an_entry_pass_through_after_the_others(tmp_path: Path):
    plan = planned(tmp_path, GOOD)
    assert plan is not None
    assert [found.frame for found in plan.entries] == [("age", "income"), ("color",)]
    assert [column.frame for column in plan.rest] == [("count",), ("window[0]", "window[1]", "window[2]")]


def test_numbers_and_strings_stand_for_what_no_other_entry_names(tmp_path: Path):
    features = entry('"strings"', 'encode = "target"') + entry('"numbers"', 'missing = "mean"')
    plan = planned(tmp_path, features + entry('["age"]', 'missing = "median"'))
    assert plan is not None
    assert [found.frame[0] for found in plan.entries] == ["color", "income", "age"]
    assert plan.entries[1].frame == ("income", "count", "window[0]", "window[1]", "window[2]")


def test_a_file_without_features_has_no_plan(tmp_path: Path):
    assert planned(tmp_path, "") is None


NUMBERS = '["age", "income"]'
REFUSED = [
    (
        GOOD.replace('"median"', '"constant"\nfill = 1e39'),
        "with 1e+39, which float32 does not hold",
        "3.4e38",
    ),
    (GOOD.replace('"median"', '"constant"\nfill = ' + "9" * 400), "float32 does not hold", "3.4e38"),
    (entry('["agge"]', ""), "names the column 'agge'", "did you mean 'age'"),
    (GOOD + entry('["age"]', 'missing = "mean"'), "'age' is named in entries 1 and 3", "once"),
    (GOOD + entry('"strings"', 'encode = "ordinal"'), "takes the strings", "remove the entry"),
    (entry(NUMBERS, 'missing = "mean"'), "'color' holds strings and no entry", "one-hot"),
    (entry('["color"]', 'encode = "one-hot"'), "'age' may be missing and no entry", "median"),
    (entry('["color", "count"]', 'encode = "one-hot"'), "'color', which holds strings", "each kind"),
    (entry('["color"]', 'scale = "standard"'), "asks for scale of strings", "encode"),
    (
        entry('["color"]', 'encode = "one-hot"\nmissing = "mean"'),
        "missing = 'mean' for strings",
        "most-frequent",
    ),
    (entry('["color"]', 'encode = "one-hot"\ntext = "tf-idf"'), "both encode and text", "either"),
    (entry('["color"]', ""), "leaves strings as they are", "encode"),
    (entry('["color"]', 'text = "tf-idf"\nmissing = "most-frequent"'), "for text", "no terms"),
    (entry('["color"]', 'text = "tf-idf"\nngrams = [2, 1]'), "ngrams", "shortest first"),
    (entry('["count"]', 'text = "tf-idf"'), "asks for text = 'tf-idf' of numbers", "string"),
    (entry('["count"]', 'encode = "one-hot"'), "encode = 'one-hot' of numbers", "bins"),
    (entry('["count"]', 'scale = "bins"\nencode = "target"'), "'target' for bins", "ordinal"),
    (entry(NUMBERS, 'scale = "standard"'), "'age' without a rule for missing", "median"),
    (entry(NUMBERS, 'missing = "constant"'), "without fill", "fill = 0"),
    (entry(NUMBERS, 'missing = "constant"\nfill = "x"'), "fills numbers with 'x'", "a number"),
    (
        entry('["color"]', 'encode = "ordinal"\nmissing = "constant"\nfill = 3'),
        "fills strings with 3",
        "text",
    ),
    (
        entry(NUMBERS, 'missing = "mean"\nfill = 3'),
        "sets fill without missing = 'constant'",
        "leave fill out",
    ),
    (entry(NUMBERS, 'missing = "mean"\nn_bins = 3'), "sets n_bins without scale = 'bins'", "leave n_bins"),
    (entry('["age"]', 'missing = "mice"'), "'mice' for one column", "median"),
    (entry('["count"]', 'outliers = "isolation-forest"'), "no limit to be moved to", "flag"),
    (
        entry('["count"]', 'outliers = "isolation-forest"\noutlier_action = "drop"\noutlier_limit = 0.9'),
        "a share of 0.9",
        "0.5",
    ),
    (entry('["count"]', 'statistics = ["mean"]'), "'count', which holds one value", "windows"),
    (
        GOOD + "[[prepare.rules]]\ncolumn = 'color'\npattern = '(?!x).*'\notherwise = 'missing'\n",
        "a part that the exported graph does not have",
        "look-around",
    ),
    (
        GOOD + "[[prepare.rules]]\ncolumn = 'age'\npattern = 'x'\notherwise = 'missing'\n",
        "reads strings, but input 'numbers' is float32",
        "minimum",
    ),
    (
        "[[prepare.rules]]\ncolumn = 'color'\npattern = 'x'\notherwise = 'missing'\n",
        "nothing under",
        "otherwise = 'drop'",
    ),
    (
        GOOD.replace('"median"', '"median"\nscale = "standard"')
        + "[prepare.select]\nmethod = 'chi-squared'\nkeep = 2\n",
        "'age' has scale = 'standard'",
        "minmax",
    ),
]


@pytest.mark.parametrize("features, message, hint", REFUSED)
def test_what_makes_no_sense_is_refused_with_the_alternative(
    features: str, message: str, hint: str, tmp_path: Path
):
    with pytest.raises(SettingsError) as caught:
        planned(tmp_path, features)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_features_and_a_transformer_of_ones_own_are_not_both_taken(tmp_path: Path):
    with pytest.raises(SettingsError, match="are both set"):
        planned(tmp_path, GOOD, model='preprocessing = "model:preprocessing"')


def test_a_window_over_the_label_is_refused_whether_or_not_there_are_features(tmp_path: Path):
    window = "[[prepare.windows]]\nname = 'window'\ncolumn = 'y'\ntime = 't'\nlength = 3\n"
    for features in (GOOD, ""):
        with pytest.raises(SettingsError, match="the window 'window' has column = 'y', which is the label"):
            planned(tmp_path, features + window)


def test_chi_squared_needs_classes(tmp_path: Path):
    select = "[prepare.select]\nmethod = 'chi-squared'\nkeep = 2\n"
    with pytest.raises(SettingsError, match="the task is regression"):
        planned(tmp_path, GOOD + select, task="regression")


def test_a_list_whose_values_share_a_columns_name_is_refused(tmp_path: Path):
    text = HEAD.replace('name = "count"', 'name = "window[1]"').format(task="regression", model="")
    (tmp_path / "kit.toml").write_text(text + GOOD, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"both called 'window\[1\]'"):
        plan_features(Project.open(tmp_path))
