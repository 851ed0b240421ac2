"""Names in an error."""

from collections.abc import Sequence

LISTED = 20  # more are counted


def listed(names: Sequence[object]) -> str:
    """Name what is amiss, one a line, up to a number."""
    lines = [f"  {name}" for name in names[:LISTED]]
    if len(names) > LISTED:
        lines.append(f"  and {len(names) - LISTED:,} more")
    return "\n".join(lines)
