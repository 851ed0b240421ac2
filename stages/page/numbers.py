"""Numbers as the page writes them."""


def count(number: int) -> str:
    """Write a count."""
    return f"{number:,}"


def percent(share: float) -> str:
    """Write a share of one."""
    return f"{100 * share:.1f} %" if share < 0.9995 else "100 %"


def change(in_percent: float) -> str:
    """Write a change with its sign."""
    return f"{in_percent:+.2f}".replace("-", "\N{MINUS SIGN}")


def figure(number: float) -> str:
    """Write what was measured; a whole number in a report was counted.

    >>> figure(7), figure(7.0), figure(0.5)
    ('7', '7.000', '0.50000')
    """
    if isinstance(number, int):
        return count(number)
    return f"{number:.{5 if abs(number) < 1 else 3}f}"


def weight(number: float) -> str:
    """Write a share in a mix."""
    return f"{number:.4g}".replace("-", "\N{MINUS SIGN}")


def size(count: int) -> str:
    """Write a number of bytes as people do.

    >>> size(999), size(2_723_840)
    ('999 B', '2.7 MB')
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit == "B" else f"{value:.1f} {unit}"
