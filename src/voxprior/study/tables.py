"""Writes tables: CSV for everyone, Parquet beside it for those who read a million rows."""

from pathlib import Path
from typing import Any

import pandas as pd

from voxprior.whole import whole, write_text

MANY = 100_000  # rows from which Arrow writes the CSV: pandas takes 4 s for a million


def write_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Writes `<name>.csv` and `<name>.parquet` whole; missing numbers are empty cells.

    Numbers have 8 digits in the CSV of a short table and all of them elsewhere.

    Raises:
        Refusal: the disk is full.
    """
    import pyarrow
    from pyarrow import parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    if len(table) < MANY:
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
    else:
        _write_long(folder / f"{name}.csv", arrow)
    with whole(folder / f"{name}.parquet") as part:
        parquet.write_table(arrow, part, compression="zstd")


def _write_long(path: Path, arrow: Any) -> None:
    import pyarrow
    from pyarrow import csv

    words = [column for column in arrow.columns if pyarrow.types.is_dictionary(column.type)]
    known = [str(word) for column in words for chunk in column.chunks[:1] for word in chunk.dictionary.to_pylist()]
    # Arrow quotes every word or none.
    plain = not any(mark in word for word in known for mark in ',"\r\n')
    style = "none" if plain and not any(pyarrow.types.is_large_string(c.type) for c in arrow.columns) else "needed"
    how = csv.WriteOptions(quoting_style=style, quoting_header="none")
    with whole(path) as part, csv.CSVWriter(part, arrow.schema, write_options=how) as writer:
        # Slice by slice: words are written out in full, and not all of them at once.
        for start in range(0, len(arrow), 1 << 18):
            writer.write_table(arrow.slice(start, 1 << 18))
