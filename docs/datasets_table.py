"""Writes the table of `docs/datasets.md` from `config/datasets/*.yaml`; a test fails when the page is behind.

python docs/datasets_table.py
"""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "datasets.md"
BEGIN, END = "<!-- table: made by datasets_table.py -->", "<!-- end of table -->"
HEAD = ["dataset", "what", "modality", "classes", "comes", "checked by", "licence", "shares scans with"]


def comes(source: dict[str, Any]) -> str:
    """Says how a dataset comes to this machine."""
    if source["kind"] == "manual":
        return "by hand"
    if source.get("password_from"):
        return "by itself, with a password"
    if not (files := source.get("files")):
        return "by itself"
    return (
        f"by itself, {'several archives' if all(file['file'].endswith('.zip') for file in files) else 'file by file'}"
    )


def checked_by(source: dict[str, Any]) -> str:
    """Says which hashes are known before the first download."""
    accepts = source.get("accepts") or []
    if files := source.get("files"):
        accepts = [known for file in files for known in file.get("accepts") or [{}]]
    kinds = {next((kind for kind in ("sha256", "md5") if kind in known), "first use") for known in accepts}
    if not accepts:
        return "numbers of files" if source.get("expects") else "first use"
    return ", ".join(sorted(kinds, key=["sha256", "md5", "first use"].index))


def table() -> str:
    """Makes the table, one row per dataset."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for path in sorted((ROOT / "config" / "datasets").glob("*.yaml")):
        dataset = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append(
            [
                f"[{path.stem}](../config/datasets/{path.name})",
                dataset["title"],
                dataset["modality"].upper(),
                str(len(dataset["classes"]) or "none"),
                comes(dataset["source"]),
                checked_by(dataset["source"]),
                f"[{dataset['licence']}]({dataset['licence_url']})"
                if dataset.get("licence_url")
                else dataset["licence"],
                ", ".join(dataset.get("overlaps") or []),
            ]
        )
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def page(text: str) -> str:
    """Puts a fresh table into the page's text."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
