"""Reads what a study's steps have written (`docs/formats.md`); nothing here computes.

A file that every finished run has is demanded; what only some runs have (pictures, benchmarks) may be absent.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voxprior.errors import Refusal
from voxprior.study.cells import Cell, cell_name, pretraining_name
from voxprior.study.layout import factorize

CELL = ["backbone", "init", "budget", "fold", "pretrain_seed", "seed"]
SCORE = ["dataset", "case", "patient", "class", "metric", "value", "flag"]
# Columns of the tables in which a number may be missing; everywhere else an empty cell is empty text.
NUMBERS = ["value", "mean", "low", "high", "difference", "effect", "effect_low", "effect_high", "p", "p_holm"]
NUMBERS += ["false_claim", "smallest", "labels", "rank", "variance", "share", "pretrain_seed"]


def cell_folder(results: Path, cell: Cell) -> Path:
    """Names the folder of one fine-tuning."""
    return results / "finetune" / cell_name(cell)


def pretrain_folder(results: Path, cell: Cell) -> Path:
    """Names the folder of one pretraining, or of the one that a cell starts from."""
    return results / "pretrain" / pretraining_name(cell)


def read_scores(results: Path, cells: list[Cell], study: str, dataset: str) -> pd.DataFrame:
    """Reads the scores of all cells into one table, in the order of the cells; words are categories, for memory.

    Args:
        results: the study's results folder.
        cells: see `cells.cells_of`.
        study: name of the study, the first column.
        dataset: the study's own; its cases are the cohort `test`, all others `external`.

    Raises:
        Refusal: a cell has no scores, or they are damaged.
    """
    import pyarrow
    from pyarrow import csv

    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {name: pyarrow.float64() if name == "value" else words for name in SCORE}
    # Case 007 is not case 7, and nobody is called NaN: only an empty value is no value.
    how = csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False, include_columns=SCORE)
    tables = []
    for cell in cells:
        path = cell_folder(results, cell) / "scores.csv"
        if not path.is_file():
            raise Refusal(f"{path} is missing: run 'score' for this cell, a study is compared whole")
        try:
            tables.append(csv.read_csv(path, convert_options=how))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError):
            raise Refusal(f"{path} is damaged: delete it and run 'score' for this cell") from None
    rows = np.array([table.num_rows for table in tables], dtype=np.int64)
    found = pyarrow.concat_tables(tables).unify_dictionaries().combine_chunks().to_pandas()
    scores = pd.DataFrame({"study": pd.Categorical.from_codes(np.zeros(len(found), np.int8), pd.Index([study]))})
    scores["dataset"] = found["dataset"]
    own = found["dataset"].cat.categories == dataset
    cohort = np.where(own, 0, 1).astype(np.int8)[found["dataset"].cat.codes]
    scores["cohort"] = pd.Categorical.from_codes(cohort, pd.Index(["test", "external"]))
    for name in CELL:
        scores[name] = _repeated([cell.get(name) for cell in cells], rows)
    for name in SCORE[1:]:
        scores[name] = found[name]
    return scores


def _repeated(values: list[Any], rows: np.ndarray) -> Any:
    """Repeats each cell's value for all of its rows: numbers, None among them, as they are, words as categories."""
    if any(value is None for value in values):
        return pd.array(values, dtype="Int32").take(np.repeat(np.arange(len(values)), rows))
    code, known = pd.factorize(np.asarray(values))
    if known.dtype.kind in "iu":
        return np.repeat(np.asarray(values, dtype=np.int32), rows)
    return pd.Categorical.from_codes(np.repeat(code.astype(np.int16), rows), pd.Index(known))


def demand_cases(scores: pd.DataFrame, splits: dict[str, Any]) -> None:
    """Checks that every cell has scored exactly its fold's test cases, and the external cases that all others have.

    A mean over fewer cases would be another number.

    Raises:
        Refusal: a test case has no score, a scored case is none of the test cases, or a cell lacks an external case.
    """
    expected = {fold["fold"]: set(fold["test"]) for fold in splits["folds"]}
    keys = [*CELL, "case"]
    columns = [factorize(scores[name])[0] for name in keys]
    begins = np.ones(len(scores), dtype=bool)  # of a run of rows of one case: fewer than rows by classes and metrics
    begins[1:] = np.any([np.diff(column) != 0 for column in columns], axis=0)
    in_test = (scores["cohort"] == "test").to_numpy()
    pairs = scores.loc[begins & in_test, keys].drop_duplicates()
    for cell, rows in pairs.groupby(CELL, sort=False, observed=True, dropna=False):
        place = _place(cell)
        scored, wanted = set(rows["case"]), expected.get(cell[3], set())
        if wrong := sorted(wanted ^ scored):
            what = "is not scored" if wrong[0] in wanted else "is scored but no test case of the split"
            raise Refusal(f"cell {place}: case '{wrong[0]}' {what}: rerun 'predict' and 'score' for this cell")
    pairs = scores.loc[begins, [*CELL, "cohort", "dataset", "case"]].drop_duplicates()
    others = pairs[pairs["cohort"] == "external"]
    known = set(zip(others["dataset"].astype(str), others["case"].astype(str), strict=True))
    for cell, rows in pairs.groupby(CELL, sort=False, observed=True, dropna=False):
        have = set(zip(rows["dataset"].astype(str), rows["case"].astype(str), strict=True))
        if lacking := sorted(known - have):
            raise Refusal(
                f"cell {_place(cell)}: external case '{lacking[0][1]}' is not scored, as in other cells: rerun "
                "'predict' and 'score' for this cell"
            )


def _place(values: tuple[Any, ...]) -> str:
    """Names a cell as its folder does."""
    cell = dict(zip(CELL, values, strict=True))
    return cell_name(cell | {"pretrain_seed": None if pd.isna(cell["pretrain_seed"]) else cell["pretrain_seed"]})


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        Refusal: missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path} is missing: run the step that writes it") from None
    except ValueError:
        raise Refusal(f"{path} is damaged: delete it and run the step that writes it") from None


def read_leakage(results: Path) -> list[dict[str, Any]]:
    """Reads which scored cases are learned from as well: {learned, scored, shared, folds}, one per pair.

    Raises:
        Refusal: missing or no JSON.
    """
    return list(read_json(results / "leakage.json")["found"])


def read_table(path: Path) -> pd.DataFrame:
    """Reads a CSV table, empty cells as empty text.

    Raises:
        Refusal: missing.
    """
    if not path.is_file():
        raise Refusal(f"{path} is missing: run the step that writes it")
    empty: dict[Any, list[str]] = {name: [""] for name in NUMBERS}
    # Case 007 is not case 7, and nobody is called NaN.
    names: dict[Any, type] = dict.fromkeys(("dataset", "case", "patient", "person", "image", "label", "file"), str)
    return pd.read_csv(path, keep_default_na=False, na_values=empty, dtype=names)


def read_journal(path: Path) -> pd.DataFrame:
    """Reads a journal, one row per logged step; empty where there is none."""
    if not path.is_file():
        return pd.DataFrame({"step": [], "progress": [], "loss": []})
    return pd.read_json(path, lines=True)


def read_pictures(path: Path) -> dict[str, np.ndarray] | None:
    """Reads the pictures of a pretraining, or None where it made none."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def read_benchmarks(results: Path) -> pd.DataFrame:
    """Reads Snakemake's benchmark files: `job` (path below `benchmarks/`), `s`, `max_rss` in MiB, `cpu_time` in s."""
    rows = []
    root = results / "benchmarks"
    for path in sorted(root.rglob("*.tsv")):
        table = pd.read_csv(path, sep="\t")
        # Snakemake writes NA or - where a job was too short to be measured.
        table = table.reindex(columns=["s", "max_rss", "cpu_time"]).apply(pd.to_numeric, errors="coerce")
        row = {"s": table["s"].sum(min_count=1), "max_rss": table["max_rss"].max()}
        row["cpu_time"] = table["cpu_time"].sum(min_count=1)
        rows.append({"job": path.relative_to(root).with_suffix("").as_posix(), **row})
    return pd.DataFrame(rows, columns=["job", "s", "max_rss", "cpu_time"])


def read_statistics(path: Path) -> pd.DataFrame | None:
    """Reads a table of statistics: numbers as numbers, NaN where empty; None where an older study has no such table."""
    if not path.is_file():
        return None
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    words = {"dataset", "cohort", "backbone", "init", "against", "class", "metric", "verdict", "stamp"}
    words |= {"kind", "high_kind", "scheme", "source"}
    for name in [name for name in table.columns if name not in words]:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    return table
