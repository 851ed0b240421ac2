"""Before torch is imported: its threads are to sleep while they wait, as in the stages."""

from hypothesis import settings

from stages.harness.threads import wait_politely

wait_politely()
settings.register_profile("on a busy machine", deadline=None)
settings.load_profile("on a busy machine")
