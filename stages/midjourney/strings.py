"""Columns of strings as the bytes that they are: found and cut by arithmetic, not row by row.

Arrow keeps the strings of a column one behind the other in one buffer, and where each starts.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
_ZEROS, _CARRY, _HIGHEST = (np.uint64(byte * 0x0101010101010101) for byte in (0x30, 0x76, 0x80))


def string_buffers(strings: pa.Array) -> tuple[Ints, Bytes]:
    """Give an array's offsets, one more than rows, and the bytes that they point into."""
    _, offsets, text = strings.buffers()
    bounds = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return bounds, np.frombuffer(text or b"", np.uint8)[: bounds[-1]]


def slices(strings: pa.Array, starts: Ints, ends: Ints) -> pa.Array:
    """Copy one piece of each row's bytes.

    Args:
        strings: rows.
        starts, ends: of the pieces, in the bytes of `string_buffers`; each at or after the end
            of the piece before.
    """
    pieces = np.empty(2 * len(starts) + 1, np.int32)
    pieces[0:-1:2], pieces[1::2], pieces[-1] = starts, ends, ends[-1] if len(ends) else 0
    # piece 2 i is what we want of row i, piece 2 i + 1 what stands between it and the next
    interleaved = pa.StringArray.from_buffers(
        len(pieces) - 1, pa.py_buffer(pieces), strings.buffers()[2]
    )
    return interleaved.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def letters(text: Bytes, places: Ints) -> Bytes:
    """Read single bytes; those past the end are that of the end."""
    return text[np.minimum(places, len(text) - 1)] if len(text) else np.zeros(len(places), np.uint8)


def is_ascii(strings: pa.Array) -> bool:
    """Tell whether all bytes of all rows are ASCII."""
    bounds, text = string_buffers(strings)
    return bool(text[bounds[0] :].max(initial=0) < 128)


def are_digits(text: Bytes, starts: Ints, ends: Ints) -> Bools:
    """Tell which pieces are decimal digits alone; eight are looked at as one number.

    Args:
        text: bytes.
        starts, ends: of the pieces, of 8 to 24 bytes each.
    """
    words = np.ndarray(max(len(text) - 7, 0), np.uint64, text, strides=(1,))  # one at each byte
    found = np.ones(len(starts), np.bool_)
    for at in (starts, (starts + ends) // 2 - 4, ends - 8):
        values = words[at] ^ _ZEROS  # a byte of more than 9 carries into its highest bit, or has it
        found &= ((values + _CARRY) | values) & _HIGHEST == 0
    return found
