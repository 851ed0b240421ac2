"""A tiny training run that writes down what its process reads.

  python -m tests.noted_reads BASE SCRATCH PARAMS.yaml

trains as `tests.tiny_training` does and leaves SCRATCH/read_RANK.json: the ids of the pictures, and
of the encoded examples, in the order in which this process asked for them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.harness.params import load_params
from stages.training import encode
from stages.training.dataset import Batch, Dataset
from stages.training.encode import Example
from stages.training.loop import train
from stages.training.params import TrainParams
from stages.training.ranks import joined
from tests.tiny_training import EXAMPLES, HELD_OUT, start_from

INPUTS = {name: name for name in ("base", "config", "train", "validation", "encoding")}


class NotedExamples:
    """Examples that note which of them were asked for."""

    def __init__(self, examples: list[Example], noted: list[str]) -> None:
        self.examples, self.noted = examples, noted

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, part: slice) -> list[Example]:
        self.noted += [example.id for example in self.examples[part]]
        return self.examples[part]


def main(base: Path, scratch: Path, params: TrainParams) -> None:
    pictures: list[str] = []
    encoded: list[str] = []
    take = Dataset.take

    def noted_take(self: Dataset, rows: Sequence[int]) -> Batch:
        batch = take(self, rows)
        encoded.extend(batch.ids)
        return batch

    Dataset.take = noted_take  # type: ignore[method-assign]
    encode.EXAMPLES_PER_SHARD = 4
    train_side, validation_side = (NotedExamples(e, pictures) for e in (EXAMPLES, HELD_OUT))
    with joined() as ranks:
        train(
            start_from(base),
            train_side,
            validation_side,
            params,
            scratch,
            inputs=INPUTS,  # else each process would read all pictures to name them
            ranks=ranks,
        )
        notes = json.dumps({"pictures": pictures, "encoded": encoded})
        (scratch / f"read_{ranks.rank}.json").write_text(notes, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), load_params("train", TrainParams, Path(sys.argv[3])))
