"""Which kind of device draws, told without torch, which takes seconds, where no GPU can be."""

from pathlib import Path

GPU_NODES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")  # also Jetson, AMD, WSL


def device_kind() -> str:
    """Say what draws here, as torch calls it: cuda or cpu."""
    if not any(Path(node).exists() for node in GPU_NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
