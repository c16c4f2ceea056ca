"""Running the user's hook: plain functions, coroutine functions, mistakes."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

from portseccomp import _core
from portseccomp.errors import HookError, PolicyError
from portseccomp.grammar import move_fields
from portseccomp.verdict import Verdict

if TYPE_CHECKING:
    import asyncio

Answer: TypeAlias = Verdict | bool
Hook: TypeAlias = Callable[[_core.Request], Answer | Awaitable[Answer]]


def load_hook(spec: str) -> Hook:
    """Import "module:function" or "./file.py:function".

    The current directory counts for modules. Raises PolicyError.
    """
    import importlib
    import importlib.util
    import os
    import sys

    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise PolicyError(
            f"hook {spec!r}: right are module:function and ./file.py:function"
        )
    try:
        if place.endswith(".py") or "/" in place:
            if not os.path.isfile(place):
                raise PolicyError(f"hook {spec!r}: there is no file {place}")
            stem = os.path.basename(place).removesuffix(".py")
            found = importlib.util.spec_from_file_location(stem, place)
            if found is None or found.loader is None:
                raise PolicyError(f"hook {spec!r}: {place} is no Python file")
            module = importlib.util.module_from_spec(found)
            sys.modules.setdefault(stem, module)
            try:
                found.loader.exec_module(module)
            except BaseException:
                if sys.modules.get(stem) is module:
                    del sys.modules[stem]
                raise
        else:
            if "" not in sys.path and os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
    except PolicyError:
        raise
    except ModuleNotFoundError as error:
        raise PolicyError(f"hook {spec!r}: {error}") from error
    except Exception as error:
        raise PolicyError(
            f"hook {spec!r}: importing it raised {type(error).__name__}: {error}"
        ) from error
    hook = module
    for part in name.split("."):
        hook = getattr(hook, part, None)  # type: ignore[assignment]
    if not callable(hook):
        raise PolicyError(f"hook {spec!r}: {place} has no function {name!r}")
    return hook


_CODES = {
    "allow": _core.VERDICT_ALLOW,
    "deny": _core.VERDICT_DENY,
    "move": _core.VERDICT_MOVE,
}


class HookFailures:
    """What went wrong in the user's functions, kept for the guard's owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._message = ""
        self._first: BaseException | None = None

    def add(self, message: str, error: BaseException | None = None) -> None:
        """Count a failure; the first one is kept."""
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._message, self._first = message, error

    @property
    def count(self) -> int:
        """How many there were."""
        return self._count

    def error(self) -> HookError | None:
        """Return what the owner is to be told, or None."""
        with self._lock:
            if not self._count:
                return None
            message = self._message
            if self._count > 1:
                message += f" (and {self._count - 1} more failures)"
            error = HookError(message, self._count)
            error.__cause__ = self._first
            return error


class HookRunner:
    """Calls the hook's results what they are, and answers for it.

    The core calls the hook itself, on its own thread; what is not one of the
    plain answers comes here.
    """

    def __init__(self, failures: HookFailures, spawn: Callable[[], bool]) -> None:
        self._failures = failures
        self._spawn = spawn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own_thread: threading.Thread | None = None
        self._begun: set[tuple[Coroutine[Any, Any, object], ...]] = set()
        self._lock = threading.Lock()
        self._closed = False
        # A coroutine hook runs where its owner's other coroutines do.
        import sys

        if "asyncio" in sys.modules:
            import asyncio

            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                pass

    # ---- called by the core, with the hook's thread ----

    def want_standby(self) -> None:
        """One more thread should come while this one is in the hook."""
        self._spawn()

    def hook_raised(self, request: _core.Request, error: BaseException) -> None:
        """Deny, and keep the error."""
        self._failures.add(
            f"the hook raised {type(error).__name__} for {request!r}: {error}", error
        )
        request._decide(_core.VERDICT_DENY, 0)

    def settle(self, request: _core.Request, answer: object) -> None:
        """Answer with a verdict that is not plain ALLOW or DENY."""
        import inspect

        if inspect.iscoroutine(answer):
            self._start(request, answer)
        elif inspect.isawaitable(answer):
            self._start(request, _await(answer))
        else:
            self._answer(request, answer)

    # ---- answers ----

    def _answer(self, request: _core.Request, answer: object) -> None:
        if answer is True or answer is False:
            code = _core.VERDICT_ALLOW if answer else _core.VERDICT_DENY
            request._decide(code, 0)
            return
        if isinstance(answer, Verdict):
            target = None
            if answer.kind == "move":
                if request.call == "listen" and request.port != 0:
                    self._failures.add(
                        f"the hook answered {answer!r} for {request!r}, which is bound "
                        "by then; a TCP port is moved by a move rule"
                    )
                    request._decide(_core.VERDICT_DENY, 0)
                    return
                target = move_fields(answer.host, answer.port)
            request._decide(_CODES[answer.kind], answer.errno or 0, target)
            return
        self._failures.add(
            f"the hook returned {answer!r} for {request!r}; right are ALLOW, DENY, "
            "deny(errno), move(...), True, False"
        )
        request._decide(_core.VERDICT_DENY, 0)

    # ---- coroutines ----

    def _start(
        self, request: _core.Request, coroutine: Coroutine[Any, Any, object]
    ) -> None:
        import asyncio

        async def run() -> None:
            try:
                answer = await coroutine
            except asyncio.CancelledError:
                if not self._closed:  # else it is we who cancelled it
                    self.hook_raised(request, RuntimeError("it was cancelled"))
                raise
            except BaseException as error:
                self.hook_raised(request, error)
                if not isinstance(error, Exception):
                    raise
            else:
                self._answer(request, answer)

        runner = run()
        # Of a task that is cancelled before its first step, neither has begun.
        pair = (runner, coroutine)
        with self._lock:
            self._begun.add(pair)

        def done(_: object) -> None:
            coroutine.close()
            with self._lock:
                self._begun.discard(pair)

        try:
            future = asyncio.run_coroutine_threadsafe(runner, self._event_loop())
        except RuntimeError as error:
            runner.close()
            done(None)
            self.hook_raised(request, error)
        else:
            future.add_done_callback(done)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        """The owner's loop, or one on a thread of its own."""
        import asyncio

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._own_thread = threading.Thread(
                    target=self._run_loop, name="portseccomp-hooks", daemon=True
                )
                self._own_thread.start()
            return self._loop

    def _run_loop(self) -> None:
        loop = self._loop
        assert loop is not None
        loop.run_forever()
        loop.close()
        with self._lock:
            begun, self._begun = self._begun, set()
        for runner, coroutine in begun:
            runner.close()
            coroutine.close()

    def close(self) -> None:
        """End the loop's thread, if there is one."""
        with self._lock:
            self._closed = True
            self._spawn = lambda: False  # or it would keep the guard's state alive
            thread, loop = self._own_thread, self._loop
        if thread is None or loop is None:
            return

        def stop() -> None:
            import asyncio

            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.call_soon(loop.stop)

        loop.call_soon_threadsafe(stop)
        if thread is not threading.current_thread():  # a hook may close its guard
            thread.join(1.0)  # else it ends when its hooks let it


async def _await(awaitable: Awaitable[object]) -> object:
    return await awaitable
