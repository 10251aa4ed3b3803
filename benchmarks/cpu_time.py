"""CPU time of a program with its worker processes."""

import resource


def cpu_seconds() -> float:
    """Used so far by this process, its threads and its ended children."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))
