"""The one exception that is the user's to mend, and the exit codes of the command line."""

EXIT_INCOMPLETE = 1  # some of many inputs were refused, and are listed; all others are done
EXIT_REFUSED = 2  # bad input or configuration: the message is one sentence with file, defect, what to do
EXIT_RESUMABLE = 75  # stopped by a signal, state saved: run the same command again (EX_TEMPFAIL)


class Refusal(ValueError):
    """Refuses an input with one sentence: which file, what is wrong, what to do.

    Example:
        >>> raise Refusal("scan_3.nii.gz has no voxels: remove it or export it again")
        Traceback (most recent call last):
        ...
        voxprior.errors.Refusal: scan_3.nii.gz has no voxels: remove it or export it again
    """


class Incomplete(Exception):
    """Says that some of many inputs were refused; what could be done is done."""


class Resumable(Exception):
    """Says that work was stopped from outside and what is done was saved: the same command goes on."""
