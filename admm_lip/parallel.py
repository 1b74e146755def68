"""Independent tasks through joblib: on processes of this machine, or on any backend it knows.

    with joblib.parallel_config("dask"):         # or ray, spark, ...
        certify(model, kind="pairwise")

Without ``n_jobs`` and without such a configuration tasks are run here, one by one, and joblib is
not needed.

What a task raises is raised here, its message headed by the task's name.  A worker that dies loses
nothing: what it and its neighbours had in hand is run again.  A task that was in hand twice is run
alone, and named if its worker dies a third time.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from .errors import WorkerLost
from .extras import extra

Task = TypeVar("Task")
Result = TypeVar("Result")
# joblib's own backends work on this machine: with one worker they would gain nothing.
_OWN_BACKENDS = "joblib._parallel_backends"


def workers_of(n_jobs: int | None) -> int:
    """How many workers take tasks at a time; 0 where tasks are run here, one by one.

    Args:
        n_jobs: as joblib takes it: so many workers, -1 for one per core; ``None`` for what
            ``joblib.parallel_config`` says.

    Raises:
        ValueError: for what is no such number.
        MissingExtra: where workers are asked for, and joblib is not installed.

    Example:
        >>> workers_of(None), workers_of(1), workers_of(2)
        (0, 0, 2)
    """
    if n_jobs is not None and (type(n_jobs) is not int or n_jobs == 0):
        raise ValueError(
            f"n_jobs: expected a number of workers, -1 for one per core, or None, got {n_jobs!r}"
        )
    if n_jobs == 1 or (n_jobs is None and "joblib" not in sys.modules):
        return 0
    joblib = _joblib()
    backend, _ = joblib.parallel.get_active_backend()
    workers = int(joblib.effective_n_jobs(n_jobs))
    return 0 if workers == 1 and type(backend).__module__ == _OWN_BACKENDS else workers


def _joblib() -> Any:
    with extra():
        import joblib
    return joblib


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    names: Sequence[str],
    *,
    n_jobs: int | None = None,
    done: Callable[[], Any] = lambda: None,
) -> list[Result]:
    """The result of every task, in their order; arguments as for :func:`finished_tasks`.

    Args:
        done: called here after each of them.

    Example:
        >>> run_tasks(abs, [-1, 2, -3], ["first", "second", "third"])
        [1, 2, 3]
    """
    found: dict[int, Result] = {}
    for k, result in finished_tasks(function, tasks, names, n_jobs=n_jobs):
        found[k] = result
        done()
    return [found[k] for k in range(len(tasks))]


def finished_tasks(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    names: Sequence[str],
    *,
    n_jobs: int | None = None,
) -> Iterator[tuple[int, Result]]:
    """The number and the result of each task, as they come.

    Args:
        function: of one task; it, tasks and results can be pickled.  In a worker it has one thread
            of linear algebra.
        tasks: what it is called with.
        names: what a person calls each task, in errors.
        n_jobs: as for :func:`workers_of`.

    Raises:
        WorkerLost: naming the task whose worker died whenever it was tried.
        Exception: what the first task to fail raised, its name in front.
    """
    if not workers_of(n_jobs):
        for k, task in enumerate(tasks):
            try:
                result = function(task)
            except Exception as failure:
                raise _named(failure, names[k]) from failure.__cause__
            yield k, result
        return
    left, losses = dict.fromkeys(range(len(tasks))), Counter[int]()
    while left:
        alone = [k for k in left if losses[k] > 1][:1]
        begun: list[int] = []
        try:
            with closing(_pass(function, tasks, alone or list(left), n_jobs, begun)) as results:
                for k, result, error in results:
                    if error is not None:
                        raise _named(error, names[k])
                    del left[k]
                    yield k, result
        except _Lost as lost:
            in_hand = [k for k in begun if k in left]
            if not in_hand:  # not even begun: there is no such backend, or it has no worker
                raise lost.reason from None
            if alone:
                raise _worker_lost(names[alone[0]], lost.reason) from lost.reason
            losses.update(in_hand)


class _Lost(Exception):
    """The backend gave up; tasks return their own errors, so that this is none of them."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _worker_lost(name: str, reason: Exception) -> WorkerLost:
    return WorkerLost(
        f"{name}: its worker was lost whenever it was tried, the last time alone "
        f"({type(reason).__name__}: {reason!s:.300}); run it by itself, with more memory, or here "
        "with n_jobs=1"
    )


def _pass(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    order: Iterable[int],
    n_jobs: int | None,
    begun: list[int],
) -> Generator[tuple[int, Any, Exception | None]]:
    """One go of the backend at some of the tasks; ``begun`` hears of those handed to it."""
    delayed = _joblib().delayed

    def calls() -> Iterator[Any]:
        for k in order:
            begun.append(k)
            yield delayed(_guarded)(function, k, tasks[k])

    try:
        with _mended(), _threads_as_before():
            yield from _parallel(n_jobs)(calls())
    except Exception as error:
        raise _Lost(error) from error


@contextmanager
def _mended() -> Iterator[None]:
    """Within it, clusters do what joblib (1.6) expects of them, and of itself.

    * A cluster with one worker is one.  joblib would run the tasks here instead, and with them what
      has killed the other workers.
    * What Dask gives up, because it has killed too many workers, is reported.  joblib's collector
      of results fails on it, and joblib would wait for ever.
    """
    backend, _ = _joblib().parallel.get_active_backend()
    if type(backend).__module__ == _OWN_BACKENDS:
        yield
        return
    count, read = backend.effective_n_jobs, backend.retrieve_result_callback
    own: dict[str, Any] = {"effective_n_jobs": lambda n_jobs: max(2, count(n_jobs))}
    if all(hasattr(backend, name) for name in _OF_DASK):
        own["_collect"] = partial(_collect, backend)
        own["retrieve_result_callback"] = partial(_read, read)
    vars(backend).update(own)
    try:
        yield
    finally:
        for name in own:
            delattr(backend, name)


_OF_DASK = ("_collect", "waiting_futures", "_results", "_callbacks")


async def _collect(backend: Any) -> None:
    """As in ``joblib._dask``, but that a failed future is handed on like the others."""
    while backend._continue:
        async for future, result in backend.waiting_futures:
            waiting, callback = backend._results.pop(future), backend._callbacks.pop(future)
            failed = future.status == "error"
            result = await future.exception() if failed else result
            if failed:
                waiting.set_exception(result)
            else:
                waiting.set_result(result)
            callback(_Lost(result) if failed else result)
        await asyncio.sleep(0.01)


def _read(read: Callable[[Any], Any], out: Any) -> Any:
    if isinstance(out, _Lost):
        raise out.reason
    return read(out)


def _parallel(n_jobs: int | None) -> Any:
    """joblib's engine: results as they come, or all at the end where the backend knows no other."""
    joblib = _joblib()
    try:
        return joblib.Parallel(n_jobs, return_as="generator_unordered", batch_size=1)
    except (ValueError, NotImplementedError):
        return joblib.Parallel(n_jobs, batch_size=1)


def _guarded(
    function: Callable[[Any], Any], k: int, task: Any
) -> tuple[int, Any, Exception | None]:
    """In a worker: the task's number, and its result or error."""
    try:
        with one_thread():
            return k, function(task), None
    except Exception as error:
        return k, None, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error with the worker's traceback as a note, able to cross to another process."""
    error.add_note(f"in a worker:\n{traceback.format_exc()}")
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _named(error: Exception, name: str) -> Exception:
    """The same error, the name in front of its message, or a note where that is no text."""
    if error.args == (str(error),):
        error.args = (f"{name}: {error}",)
    else:
        error.add_note(f"in {name}")
    return error


class _OneThread:
    """How many threads of this process are within :func:`one_thread`, and what was before them.

    Libraries keep one number of threads for the whole process, and torch another one for new
    threads of it: the first to enter lowers them, the last to leave puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users, self._before, self._limits = 0, 0, ExitStack()

    def enter(self) -> None:
        """One more."""
        with self._lock:
            torch = _torch()
            if torch and not self._before:
                self._before = torch.get_num_threads()
            if not self._users:
                self._limits.enter_context(_limited())
            if torch:
                torch.set_num_threads(1)  # of this thread as well
            self._users += 1

    def leave(self) -> None:
        """One less; a thread that leaves others behind keeps its one until it has its next task."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._limits.close()
            if self._before:
                _torch().set_num_threads(self._before)
                self._before = 0


_ONE_THREAD = _OneThread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, linear algebra has one thread: the workers beside have the other cores."""
    _ONE_THREAD.enter()
    try:
        yield
    finally:
        _ONE_THREAD.leave()


@contextmanager
def _threads_as_before() -> Iterator[None]:
    """For the caller's thread, which a backend may have run tasks in beside others."""
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    before = count() if count else 0
    try:
        yield
    finally:
        if count and count() != before:
            _torch().set_num_threads(before)


def _torch() -> Any:
    """Torch where it is loaded; where another thread loads it, once it has."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read where it is imported later
        return None
    import torch

    return torch


def _limited() -> AbstractContextManager[Any]:
    from threadpoolctl import threadpool_limits

    one: AbstractContextManager[Any] = threadpool_limits(1)
    return one
