"""Load on ``mlflow models serve``.

Time to answer, errors and memory, one JSON line per number of clients.

Requests of 8 sequences of 500 bases come from a second process, with 1, 8 and 32 clients that each
wait for one answer before they ask again; they begin when the server has answered 50. The baseline
of ``http/clients_N`` is the median time of the model for such a request in a process without a
server, and ``ratio`` tells how many times longer the median client waits: with more clients than
cores they queue. Memory is the resident set of the server with all its workers, before the first
request and after the last one of each line. Argument: an enhancer model, models:/NAME@ALIAS or an
exported folder (default models:/enhancer-deepstarr@champion)."""

import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HOST = "127.0.0.1"
CLIENTS, REQUESTS, ROWS, BASES, SEED = (1, 8, 32), 640, 8, 500, 1
WARM = 50  # requests before anything is timed
PATIENCE = 120.0  # seconds that the server has to come up
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def table() -> pd.DataFrame:
    generator = np.random.default_rng(SEED)
    return pd.DataFrame(
        {"sequence": ["".join(row) for row in generator.choice(list("ACGT"), (ROWS, BASES))]}
    )


def ask(port: int, clients: int, requests: int = REQUESTS) -> dict[str, Any]:
    """Send all requests; the part of the second process."""
    body = json.dumps({"dataframe_split": table().to_dict(orient="split")})
    seconds: list[float] = []
    errors: list[str] = []

    def client() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=120)
        with contextlib.closing(connection):
            for _ in range(requests // clients):
                start = time.perf_counter()
                try:
                    connection.request(
                        "POST", "/invocations", body, {"Content-Type": "application/json"}
                    )
                    answer = connection.getresponse()
                    rows = json.loads(answer.read()).get("predictions", [])
                    if answer.status != 200 or len(rows) != ROWS:
                        errors.append(str(answer.status))
                except (OSError, ValueError, http.client.HTTPException) as error:
                    errors.append(type(error).__name__)
                    connection.close()
                seconds.append(time.perf_counter() - start)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": seconds, "errors": errors, "whole": time.perf_counter() - start}


def resident(group: int) -> float:
    """Megabytes of all processes of a group."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                pages += int((folder / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def serving(model: str) -> Any:
    """Serve a model for as long as the block lasts; give port and process group."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    words = [
        "models",
        "serve",
        "-m",
        model,
        "--env-manager",
        "local",
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + PATIENCE
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(
                        f"{model}: must come up within {PATIENCE:.0f} s, "
                        f"got:\n{log.read().decode()[-2000:]}"
                    )
                time.sleep(0.2)
            yield port, server.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except OSError:
            return False


def alone(model: str) -> float:
    """Median time of the model for one request, without a server."""
    import mlflow

    loaded, frame, seconds = mlflow.pyfunc.load_model(model), table(), []
    for _ in range(WARM + 100):
        start = time.perf_counter()
        loaded.predict(frame)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[WARM:]))


def main(model: str) -> None:
    baseline = alone(model)
    with serving(model) as (port, group):
        before = resident(group)
        ask(port, 1, WARM)
        for clients in CLIENTS:
            words = [sys.executable, __file__, "--ask", str(port), str(clients)]
            found = json.loads(
                subprocess.run(words, check=True, capture_output=True, text=True).stdout
            )
            p50, p95, p99 = np.percentile(found["seconds"], [50, 95, 99])
            result = {
                "name": f"http/clients_{clients}",
                "n": len(found["seconds"]),
                "unit": "seconds per request",
                "median": p50,
                "p95": p95,
                "p99": p99,
                "requests_per_second": len(found["seconds"]) / found["whole"],
                "errors": len(found["errors"]),
                "server_megabytes_before": round(before),
                "server_megabytes_after": round(resident(group)),
                "baseline": baseline,
                "ratio": p50 / baseline,
                "machine": MACHINE,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # here and in the server
    if sys.argv[1:2] == ["--ask"]:
        print(json.dumps(ask(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "models:/enhancer-deepstarr@champion")
