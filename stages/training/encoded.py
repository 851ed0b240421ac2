"""Encoded examples, kept for all runs that see them alike."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from stages.diffusion.model import Models
from stages.harness.counted import counted
from stages.harness.files import replacing, sha256_json
from stages.harness.progress import Progress
from stages.harness.scratch import exclusive
from stages.images.bucket import buckets
from stages.training.dataset import NO_CAPTION, Dataset
from stages.training.encode import Examples, encode_examples, shard_paths
from stages.training.params import PRECISIONS, TrainParams
from stages.training.ranks import Ranks


def encode_once(
    models: Models,
    side: str,
    examples: Examples,
    params: TrainParams,
    encoded: Path,
    inputs: Mapping[str, str],
    ranks: Ranks,
    say: Callable[[str], None],
) -> Dataset:
    """Encode examples, or find what an earlier run encoded.

    Args:
        models: whose `vae` and `text_encoder` do it; left on the device if they had to.
        side: "train" or "validation".
        examples: see `encode_examples`.
        params: decide size, buckets and the form of captions.
        encoded: where folders of encoded examples lie, named by all that decides their content.
        inputs: hashes; those of `base`, `config`, `encoding` (the code) and `side` count here.
        ranks: who shares the work.
        say: is told what a person may want to know.

    Raises:
        ValueError: if a picture is bad, or there is none.
    """
    dtype = PRECISIONS[params.precision]
    choices = buckets(params.resolution, params.max_aspect, params.bucket_step_px)
    key = {
        **{name: inputs.get(name) for name in ("base", "config", "encoding", side)},
        "buckets": [str(bucket) for bucket in choices],
        "captions": "tokens" if params.trains_text_encoder else str(dtype),
    }
    folder = encoded / f"{side}-{sha256_json(key)[:16]}"
    done = folder / "done"
    with ExitStack() as held:
        if ranks.is_first:
            held.enter_context(exclusive(folder, wait=True))
        files = [done, folder / NO_CAPTION, *shard_paths(folder, len(examples))]
        if ranks.agree(int(not all(file.is_file() for file in files))):
            for network in (models.vae, models.text_encoder):
                nn.Module.to(network, ranks.device).eval()
            progress = Progress(f"encode {side}", len(examples), is_shown=ranks.is_first)
            encode_examples(
                models,
                examples,
                choices,
                folder,
                keep_tokens=params.trains_text_encoder,
                dtype=dtype,
                rank=ranks.rank,
                ranks=ranks.count,
                on_example=lambda count: progress.advance(count * ranks.count),
            )
            progress.close()
            ranks.wait()
            if ranks.is_first:
                with replacing(done) as partial:
                    partial.touch()
    dataset = Dataset(folder)
    if not ranks.all_have(len(dataset)):
        raise ValueError(
            f"{folder}: this process finds {counted(len(dataset), 'example')}, another process "
            "another number. All machines must see one and the same .work"
        )
    if dataset.cut_captions:
        cut = counted(dataset.cut_captions, "caption")
        say(f"{side}: cut to what the text encoder reads: {cut}")
    if not len(dataset):
        raise ValueError(f"there are no examples for {side}; is the manifest empty?")
    return dataset
