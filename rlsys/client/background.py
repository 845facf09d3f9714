"""An event loop in a thread of its own, so that one asynchronous implementation serves synchronous callers and any event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
CLOSE_S = 30.0
"""Seconds that the last coroutine may take."""


class BackgroundLoop:
    """Runs coroutines in a daemon thread. Callers may be in any thread, with or without a running event loop, as in a notebook."""

    def __init__(self, name: str):
        self.closed, self._process = False, os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine`; return its result. Ctrl-C cancels it."""
        future = self._submit(coroutine)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    async def arun(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` without blocking the caller's event loop; it is cancelled when the caller is."""
        return await asyncio.wrap_future(self._submit(coroutine))

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what is running, run `last`, and end the thread."""
        if self.closed or os.getpid() != self._process:
            last.close()
            return
        self.closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._finish(last), self._loop).result(2 * CLOSE_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _finish(self, last: Coroutine[Any, Any, None]) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=CLOSE_S)
        await asyncio.wait_for(last, CLOSE_S)

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        problem = None
        if self.closed:
            problem = "it is closed."
        elif os.getpid() != self._process:
            problem = "it was made in another process, and its connections cannot be shared; make one in each process."
        if problem:
            coroutine.close()
            raise RuntimeError(f"GRM: {problem}")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
