"""Waiting for what other processes do: as long as they are at work, however slow the machine; not
longer than they are silent."""

import time

import psutil


def work_done():
    "Seconds that all descendants of this process have computed, those that have ended included."
    own = psutil.Process()
    ended = own.cpu_times()
    total = ended.children_user + ended.children_system
    for child in own.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def wait_for(happened, silence=120, at_most=1200):
    """Wait until something has happened, and return it. Fails once nobody has computed for so
    many seconds, or at the latest bound."""
    begun = beat = looked = time.monotonic()
    work = work_done()
    while not (found := happened()):
        now = time.monotonic()
        if now - looked > 0.5:
            looked = now
            if work_done() > work + 0.05:
                work, beat = work_done(), now
        assert now - beat < silence, (
            f'it did not happen, and for {silence} s nobody has computed anything'
        )
        assert now - begun < at_most, f'it did not happen within {at_most} s'
        time.sleep(0.02)
    return found
