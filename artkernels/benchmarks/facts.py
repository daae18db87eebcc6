"""What a run says of itself: where it ran, with what, and when."""

from collections.abc import Sequence

from artkernels.benchmarks.results import Results, Row
from artkernels.benchmarks.tables import bytes_text, significant

__all__ = ["commit", "dropped", "facts", "failures", "missing", "processor", "rounds"]

# Of pytest-benchmark's description of the machine, what is said in other words or helps no reader.
_UNSAID = {"node", "processor", "machine", "cpu", "system", "release", "threads"}
_UNSAID_PREFIX = "python_"
_LISTED = {"missing", "dropped", "failures", "interrupted", "peaks", "version"}


def processor(results: Results) -> str:
    """Its name and how many cores it has, as far as they are known."""
    cpu = results.machine.get("cpu") or {}
    name = cpu.get("brand_raw") or results.machine.get("processor") or results.machine.get("machine") or "unknown"
    return f"{name}, {cpu['count']} cores" if "count" in cpu else str(name)


def commit(results: Results) -> str:
    """Its first 12 digits, and whether the sources had changed since; empty outside a checkout."""
    found = results.commit.get("id") or ""
    return found[:12] + (" with changes" if found and results.commit.get("dirty") else "")


def rounds(rows: Sequence[Row]) -> str:
    """For example 11, or 3 to 21."""
    counts = [len(seconds) for row in rows for seconds in row.seconds.values()]
    if not counts:
        return "0"
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def missing(results: Results) -> dict[str, str]:
    """Peers that were not timed at all -> why."""
    return dict(results.about.get("missing") or {})


def dropped(results: Results) -> list[str]:
    """Peers that were not timed in single rows, and why."""
    return list(results.about.get("dropped") or [])


def failures(results: Results) -> list[str]:
    """Rows that there are not, since ours failed or computed something else, and that the run was stopped."""
    stopped = ["the run was stopped before its end: rows are missing"] if results.about.get("interrupted") else []
    return stopped + list(results.about.get("failures") or [])


def facts(results: Results) -> dict[str, str]:
    """All of it, for the head of a report."""
    machine = results.machine
    found = {
        "processor": processor(results),
        "system": " ".join(str(machine[key]) for key in ("system", "release", "machine") if machine.get(key)),
        "Python": str(machine.get("python_version", "")),
        "artkernels": str(results.about.get("version", "")),
        **{
            key.replace("_", " "): bytes_text(value) if key == "memory" else _plain(value)
            for key, value in machine.items()
            if key not in _UNSAID and not key.startswith(_UNSAID_PREFIX)
        },
        "commit": commit(results),
        "date": results.date[:16].replace("T", " "),
        "threads": ", ".join(map(str, sorted({row.threads for row in results.rows}))),
        "rounds": rounds(results.rows),
        **{key.replace("_", " "): _plain(value) for key, value in results.about.items() if key not in _LISTED},
        "measured peaks": ", ".join(_peak(name, value) for name, value in results.about.get("peaks", {}).items()),
    }
    return {name: text for name, text in found.items() if text}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _peak(name: str, value: float) -> str:
    return f"{name} {significant(value / 1e9)} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
