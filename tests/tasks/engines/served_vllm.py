"""A vLLM server in a process of its own, started as REMEDY says, which can be killed and started again."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tasks.engines.vllm_endpoint import CPU_FLAGS, FLAGS

SMALL = "--enforce-eager --dtype float32 --block-size 32 --max-num-batched-tokens 4096 --max-model-len 512"
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
START_SECONDS = 300


@dataclass
class Server:
    """One server, which can be killed and started again at the same address."""

    checkpoint: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        flags = shlex.split(f"{FLAGS} {CPU_FLAGS} {SMALL}")
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--model", str(self.checkpoint)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *address, *flags],
                env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            is_running = self.process is not None and self.process.poll() is None
            assert is_running and time.monotonic() < deadline, self.log.read_text()[-3000:]  # noqa: PT018
            try:
                if httpx.get(self.url + "/health", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def num_finished(self) -> int:
        """Requests that it has answered since it started."""
        metrics = httpx.get(self.url + "/metrics", trust_env=False).text
        return round(sum(float(n) for n in re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", metrics, re.M)))

    def say_version(self, version: str) -> None:
        httpx.post(self.url + "/update_weight_version", json={"new_version": version}, trust_env=False)
