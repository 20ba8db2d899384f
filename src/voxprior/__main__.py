"""Runs the command line: `voxprior`, or `python -m voxprior`."""

import sys

from voxprior.cli import people, steps  # noqa: F401 (for the verbs that they add, in the order of the help)
from voxprior.cli.options import app


def main() -> None:
    """Runs the command line; turns refusals into one sentence and an exit code."""
    from voxprior.errors import EXIT_INCOMPLETE, EXIT_REFUSED, EXIT_RESUMABLE, Incomplete, Refusal, Resumable

    try:
        app(standalone_mode=True)
    except Refusal as refusal:
        print(f"voxprior: {refusal}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    except Incomplete as listed:
        print(f"voxprior: {listed}", file=sys.stderr)
        raise SystemExit(EXIT_INCOMPLETE) from None
    except Resumable as stopped:
        print(f"voxprior: {stopped}", file=sys.stderr)
        raise SystemExit(EXIT_RESUMABLE) from None


if __name__ == "__main__":
    main()
