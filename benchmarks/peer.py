# SPDX-License-Identifier: Apache-2.0
"""The interface of the suite to the process of a peer."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from environments import HERE, MODULES, NotToBeHad, python_for

# glibc: never return memory to the system, so that only the first run pays for new pages.
KEEP_MEMORY = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**62)}
PATIENCE = 300.0  # the timeout of an answer in seconds; the first answer includes a compilation by XLA


class Peer:
    """A worker that answers requests; raises NotToBeHad when it cannot."""

    def __init__(self, name: str, threads: int, device: str, log: Path, keep_memory: bool = False) -> None:
        self.name, self.log = name, log
        python, variables = python_for(name)
        for library in ('OMP', 'MKL', 'OPENBLAS'):
            variables[f'{library}_NUM_THREADS'] = str(threads)
        if threads == 1:
            variables['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false'
        variables['JAX_PLATFORMS'] = 'cpu'
        if keep_memory:
            variables.update(KEEP_MEMORY)
        command = [str(python), str(HERE / 'worker.py'), name, MODULES[name], str(threads), device]
        with log.open('w') as errors:
            self.process = subprocess.Popen(
                command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            self.versions = self.ask('versions')
        except NotToBeHad:
            self.close()
            raise

    def ask(self, verb: str, *arguments: Any) -> Any:
        watch = threading.Timer(PATIENCE, self.process.kill)
        watch.start()
        try:
            print(json.dumps([verb, *arguments]), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ''
        finally:
            watch.cancel()
        if not line:
            last = [text for text in self.log.read_text().splitlines() if text.strip()][-1:]
            raise NotToBeHad(f'its process ended: {last[0] if last else f"no answer to {verb}"}')
        answer = json.loads(line)
        if 'error' in answer:
            raise NotToBeHad(answer['error'])
        return answer['result']

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
