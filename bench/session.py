"""One backend, driven through psql, and a stopwatch on it."""

import pathlib
import statistics
import subprocess
import time

MARKER = "-- done --"

# Wall clock and processor time of everything timed, to tell a busy machine from a quiet one.
clock = {"wall": 0.0, "cpu": 0.0}


class Session:
    def __init__(self, *settings, database="postgres", port=None):
        server = ["--port", str(port)] if port else []
        self.psql = subprocess.Popen(
            ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", *server, database],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
        self.process = pathlib.Path("/proc") / self.run("SELECT pg_backend_pid()")
        # What a row costs is asked of one process that interprets its plan.
        self.run("SET jit = off; SET max_parallel_workers_per_gather = 0")
        for setting in settings:
            self.run(f"SET {setting}")

    def run(self, sql):
        self.psql.stdin.write(f"{sql};\n\\echo {MARKER}\n")
        lines = []
        for line in self.psql.stdout:
            if line.rstrip("\n") == MARKER:
                break
            lines.append(line)
        else:
            raise RuntimeError(f"the server ended: {''.join(lines)}")
        answer = "".join(lines).rstrip("\n")
        if "ERROR:" in answer:
            raise RuntimeError(f"{sql[:200]}: {answer}")
        return answer

    def seconds(self, sql):
        """Processor time of the backend, which other programs on the machine disturb least."""
        wall, cpu = time.perf_counter(), self.processor_time()
        self.run(sql)
        wall, cpu = time.perf_counter() - wall, self.processor_time() - cpu
        clock["wall"] += wall
        clock["cpu"] += cpu
        return cpu

    def processor_time(self):
        return int((self.process / "schedstat").read_text().split()[0]) / 1e9

    def private_bytes(self):
        """Memory of the backend's own: what it shares with other processes is not counted."""
        lines = (self.process / "smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

    def peak_bytes(self):
        lines = (self.process / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def close(self):
        self.psql.stdin.close()
        self.psql.wait()
        while self.process.exists():  # so that its exit disturbs nobody
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def alternate(competitors, repeats, turning=False):
    """Runs the competitors in turn, `repeats` rounds after one that does not count: name → figures.

    `turning`: every other round in the opposite order, where each may find what the one before it left.
    """
    figures = {name: [] for name in competitors}
    for attempt in range(repeats + 1):
        order = list(competitors.items())
        for name, measure in reversed(order) if turning and attempt % 2 else order:
            figure = measure()
            if attempt > 0:
                figures[name].append(figure)
    return figures


def ratio(above, below):
    """The median of the rounds' ratios: what slows a whole round down does not count."""
    return statistics.median(a / b for a, b in zip(above, below))


def spread(above, below):
    """The least and the greatest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below)]
    return min(ratios), max(ratios)


def net(figures, name, scan):
    return [total - scanned for total, scanned in zip(figures[name], figures[scan])]
