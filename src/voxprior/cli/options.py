"""What all verbs share: the application, and the options that many of them take."""

import os
from pathlib import Path
from typing import Annotated, Any

# Set before anything can import these libraries: a run makes no connection that nobody asked for.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import typer

# Options of a training that its dry run takes too, and does not look at.
_OF_TRAININGS = ("--index", "--splits", "--output", "--work", "--encoder", "--threads", "--device", "--processes")
_COMPILE = ("auto", "off", "on", "graphs")


class Verbs(typer.core.TyperGroup):
    """Understands what no option can say by itself.

    `--dry-run` of a training goes to the verb that needs neither scans nor folders, without the options about these;
    `--compile` without a word is `--compile on`, and `--no-compile` is `--compile off`.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Chooses the verb."""
        if args[0] in ("pretrain", "finetune"):
            args = _with_words(args)
            if "--dry-run" in args:
                args = ["cost" if args[0] == "pretrain" else "cost-finetune", *_without_places(args[1:])]
        return super().resolve_command(ctx, args)


def _with_words(args: list[str]) -> list[str]:
    """Gives `--compile` its word."""
    found: list[str] = []
    for at, word in enumerate(args):
        if word == "--no-compile":
            found += ["--compile", "off"]
        elif word == "--compile" and (at + 1 == len(args) or args[at + 1] not in _COMPILE):
            found += ["--compile", "on"]
        else:
            found.append(word)
    return found


def _without_places(args: list[str]) -> list[str]:
    """Leaves out the options of a training that its dry run does not need."""
    kept, rest = [], iter(args)
    for word in rest:
        if word in (*_OF_TRAININGS, "--compile"):
            next(rest, None)
        elif word != "--dry-run":
            kept.append(word)
    return kept


app = typer.Typer(
    cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def there(parameter: typer.CallbackParam, value: Path | list[Path] | None) -> Path | list[Path] | None:
    """Refuses inputs that are missing, before anything is imported or written."""
    from voxprior.errors import Refusal

    for path in value if isinstance(value, list) else [value]:
        if path is not None and not path.exists():
            raise Refusal(f"{path}, given as --{parameter.name}, is missing: run the step that writes it")
    return value


In = Annotated[Path, typer.Option(callback=there)]
Card = Annotated[Path, typer.Option(help="run card (JSON)", callback=there)]
Output = Annotated[Path, typer.Option(help="what is written, by rename, when all is done")]
Work = Annotated[Path, typer.Option(help="folder for the state that an interrupted run resumes from")]
Threads = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Processes = Annotated[int, typer.Option(min=0, help="that share each batch, one per GPU; 0 and 1: this one alone")]
Compiled = Annotated[
    str,
    typer.Option(
        "--compile", metavar="auto|off|on|graphs", help="by torch; graphs: CUDA graphs too; --no-compile: off"
    ),
]


def asked(device: str, compiled: str) -> Any:
    """Puts together what is asked of the machine (`engine.ways.Asked`)."""
    from voxprior.engine.ways import Asked

    return Asked(device, compiled)
