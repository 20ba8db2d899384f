"""What all verbs share: the application, and the options that many of them take."""

import os
from pathlib import Path
from typing import Annotated, Any

# Set before anything can import these libraries: a run makes no connection that nobody asked for.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

import typer


class Verbs(typer.core.TyperGroup):
    """Hands `pretrain --dry-run` to the verb that needs neither scans nor folders, without the options about these."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Chooses the verb."""
        if args[0] == "pretrain" and "--dry-run" in args:
            kept, rest = ["cost"], iter(args[1:])
            for word in rest:
                if word in ("--index", "--splits", "--output", "--work", "--threads", "--device", "--processes"):
                    next(rest, None)
                elif word not in ("--dry-run", "--compile", "--no-compile"):
                    kept.append(word)
            args = kept
        return super().resolve_command(ctx, args)


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
