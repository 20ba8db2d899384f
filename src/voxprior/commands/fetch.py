"""fetch: brings a dataset's files here, hash-checked."""

from pathlib import Path


def run(card: Path, output: Path, mirror: str | None) -> None:
    """Fetches a dataset and writes its manifest; does nothing where everything is there already.

    Args:
        card: fetch card.
        output: `…/<dataset>/manifest.json`; the files lie beside it.
        mirror: folder, archive or URL that is tried before the dataset's own source.

    Raises:
        Refusal: see `sources.fetch`; or a file may not be read or written.
    """
    from voxprior.cards import read_card
    from voxprior.data import sources
    from voxprior.errors import Refusal

    content = read_card("fetch", card)
    try:
        sources.fetch(content.source, content.dataset, output, mirror)
    except PermissionError as error:
        raise Refusal(f"{error.filename} may not be read or written: change its permissions, then run again") from None
