"""What a device says when it gives up, told as other bad input is."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def clear_device_errors() -> Iterator[None]:
    """Tell in one message what the device lacks, as memory for a model.

    torch raises RuntimeError for it, which `clear_errors` takes for a bug; inside that, use this.

    Raises:
        OSError: in place of RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"the device gave up: {error}") from error
