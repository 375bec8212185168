"""What torch's profiler sees."""

from torch.profiler import ProfilerActivity, profile


def profiled_peak(run) -> int:
    """Most bytes that `run` had allocated at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [(e.start_ns(), e.nbytes()) for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(events):
        now += change
        peak = max(peak, now)
    return peak
