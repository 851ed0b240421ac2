"""How threads wait for each other, which decides how a small model fares on a busy machine."""

import os


def wait_politely() -> None:
    """Let OpenMP's threads sleep while they wait; call it before torch is first imported.

    By default they spin. Where another process wants the same cores, each of a small model's
    thousands of short waits then costs a whole time slice: on two cores with two other jobs a
    picture took 40 times as long. No number changes. OMP_WAIT_POLICY, if set, is left as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
