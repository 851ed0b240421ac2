"""Before torch is imported: its threads are to sleep while they wait, as in the stages."""

from stages.harness.threads import wait_politely

wait_politely()
