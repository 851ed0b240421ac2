"""The recipe's code: modules here are run (`python -m stages.NAME`), packages here are imported.

What stands here changes how long a process takes and no result, so that no stage depends on it.
"""

import atexit
import gc

# The libraries make a million objects that live as long as the process. To look through them for
# cycles as often as Python does by default takes a fifth of the time that importing diffusers
# takes, and once more, as the process ends, another.
gc.set_threshold(20_000, 10, 10)
atexit.register(gc.freeze)
