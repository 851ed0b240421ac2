"""Where torch's compiler keeps its code, for all processes of a repository."""

import os
from pathlib import Path

from stages.harness.scratch import work_dir

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own; whoever sets it chooses another folder


def compiled_code() -> Path:
    """Choose the folder, and name it to torch before anything that compiles is imported.

    Importing `torch._dynamo`, as diffusers does, chooses a folder below /tmp for good.
    """
    folder = Path(os.environ.get(VARIABLE) or work_dir("compiled")).resolve()
    os.environ[VARIABLE] = str(folder)
    return folder
