"""Counts in the words of a message."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun.

    Args:
        count: what there is.
        noun: of one.
        plural: of several, where it is not the noun with an s.

    >>> counted(1, "cell"), counted(1_200, "cell"), counted(0, "entry", "entries")
    ('1 cell', '1,200 cells', '0 entries')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
