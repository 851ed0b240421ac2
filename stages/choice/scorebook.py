"""Scores that were paid for once, by the picture's address."""

import base64
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt


class ScoreBook:
    """A file that grows by a line per score, one file per scorer; safe to kill at any time."""

    def __init__(self, folder: Path, scorer: str) -> None:
        """Open the book, and read what it holds.

        Args:
            folder: of all books.
            scorer: SHA-256 of the scorer's folder, and the code that runs it.
        """
        self.path = folder / f"{scorer}.jsonl"
        self._scores: dict[str, float] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def find(self, address: str) -> float | None:
        """Give a picture's score; None if it is still to be made."""
        return self._scores.get(address)

    def put(self, address: str, score: float) -> None:
        """Keep a score."""
        self._scores[address] = score
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # the line break first: a line that a kill cut short must not spoil this one
            file.write("\n" + json.dumps([address, score]))

    def _read(self, line: str) -> None:
        try:
            address, score = json.loads(line)
        except ValueError:
            return  # blank, or cut short
        self._scores[address] = score


class VectorBook:
    """As a `ScoreBook`, of embeddings: kept in 16 bits, which move a CMMD by less than 0.001."""

    def __init__(self, folder: Path, scorer: str) -> None:
        """Open the book, and read what it holds."""
        self.path = folder / f"{scorer}.vectors.jsonl"
        self._vectors: dict[str, npt.NDArray[np.float64]] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def find(self, key: str) -> npt.NDArray[np.float64] | None:
        """Give a picture's embedding; None if it is still to be made."""
        return self._vectors.get(key)

    def put(self, key: str, vector: npt.NDArray[np.float32]) -> None:
        """Keep an embedding."""
        stored = vector.astype(np.float16)
        self._vectors[key] = stored.astype(np.float64)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = base64.b64encode(stored.tobytes()).decode()
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([key, text]))

    def _read(self, line: str) -> None:
        try:
            key, text = json.loads(line)
            stored = np.frombuffer(base64.b64decode(text, validate=True), np.float16)
        except ValueError:
            return  # blank, or cut short
        self._vectors[key] = stored.astype(np.float64)
