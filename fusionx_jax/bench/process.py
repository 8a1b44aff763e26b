"""Memory of this process as Linux reports it (proc(5), /proc/self/status)."""


def memory(field: str) -> int:
    """A field in bytes: "VmHWM" is the peak, "RssAnon" the anonymous memory in use; 0 where there is no such file.

    `resource.getrusage` has a peak too, but a child process inherits that of its parent.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next((int(line.split()[1]) * 1024 for line in f if line.startswith(f"{field}:")), 0)
    except OSError:
        return 0
