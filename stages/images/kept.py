"""What a killed download leaves to the next one: pictures, and final answers.

A picture is kept under its own name, whatever the params and the other rows: another threshold,
mirror or row asks for nothing twice. Folder `pictures` may be deleted at any time; it only saves
asking again. Failures are remembered for one pass over the rows: the next pass asks anew.
"""

from pathlib import Path

from stages.harness.files import sha256_bytes
from stages.images.link import picture_key
from stages.images.outcome import PASSING, REASONS


class Kept:
    """Pictures by `picture_key`, and the failures of this pass by link."""

    def __init__(self, folder: Path, pass_name: str) -> None:
        """Read what an earlier process left.

        Args:
            folder: of this machine's scratch; made if missing.
            pass_name: a fingerprint of what decides whether a link fails.
        """
        self.pictures = folder / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._journal = folder / f"failed-{pass_name}.txt"
        self._failures = self._read_journal()

    def picture_path(self, link: str) -> Path:
        """Say where the picture of a link is kept, if it is."""
        name = sha256_bytes(picture_key(link).encode())
        return self.pictures / name[:2] / name

    def failure(self, link: str) -> str | None:
        """Give the reason for which a link failed for good in this pass."""
        return self._failures.get(_name(link))

    def remember(self, link: str, reason: str) -> None:
        """Write down that a link failed, unless asking again may help."""
        if reason not in PASSING:
            with self._journal.open("a", encoding="ascii") as file:
                file.write(f"{_name(link)} {reason}\n")

    def end_pass(self) -> None:
        """Forget failures: all rows had their answer."""
        self._journal.unlink(missing_ok=True)
        self._failures.clear()

    def _read_journal(self) -> dict[str, str]:
        if not self._journal.exists():
            return {}
        # a kill may leave half a line, and the next line glued to it
        lines = (line.split(" ") for line in self._journal.read_text("ascii").splitlines())
        known = {fields[0]: fields[1] for fields in lines if len(fields) == 2}
        return {name: reason for name, reason in known.items() if reason in REASONS}


def _name(link: str) -> str:
    """Name the link with its signature: a fresh signature is asked."""
    return sha256_bytes(link.encode())
