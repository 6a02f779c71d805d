"""From a message to arguments, and from what a call did to its answer. No scheduling, no flushing."""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

from noded import exceptions as ex
from noded import ids
from noded.client import codec
from noded.client.generators import DynamicObjectRefGenerator
from noded.client.objects import INLINE_LIMIT, to_raise
from noded.client.refs import ObjectRef
from noded.client.runtime import Runtime
from noded.telemetry import CANCELLED, RAISED_ERROR
from noded.wire import messages as m
from noded.worker.execution import Execution

ANY_EXCEPTION = b"*"


class Answers:
    """Needs ``runtime``; every method may be called from any thread that runs user code."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime

    # ------------------------------------------------------------ arguments

    def arguments(self, execution: Execution, payload: Any) -> tuple[Any, dict[str, Any]]:
        message = execution.message
        view = memoryview(payload)
        if message.place is not None:
            args, kwargs = self.placed(execution, *message.place)
            at = 0
        elif message.args:
            (args, kwargs), _ = codec.unpack(view[: message.args], execution.entries)
            at = message.args
        else:
            args, kwargs, at = (), {}, 0
        if message.deps:
            args = list(args)
            names = list(kwargs)
            for slot, size, offset, id_ in message.deps:
                if id_:
                    value = self.placed(execution, id_, offset, size)
                else:
                    value, failed = codec.unpack(view[at : at + size], execution.entries)
                    at += size
                    if failed:
                        raise to_raise(value)
                if slot >= 0:
                    args[slot] = value
                else:
                    kwargs[names[-1 - slot]] = value
        return args, kwargs

    def placed(self, execution: Execution | None, id_: bytes, offset: int, size: int) -> Any:
        """A value in the arena; with an offset of -1 in that of another node, perhaps."""
        if execution is not None:
            execution.borrowed = True
        runtime = self._runtime
        if offset < 0:
            (ref,) = runtime.objects.borrow([id_])
            runtime.objects.bring(ref)
            return runtime.objects.load(ref)
        with runtime.lock:
            token = runtime.holds.take(id_)
            pin = runtime.holds.pin(token.hold)
        value, failed = runtime.objects.load_place(pin.hold, offset, size)
        if failed:
            raise to_raise(value)
        return value

    # ------------------------------------------------------------ answers

    # These make the answer of a call; whoever has run it queues it when the rest is written down (``executor.py``).

    def result(self, execution: Execution, result: Any, started: float) -> None:
        runtime, message, inbound = self._runtime, execution.message, execution.inbound
        returns = message.returns
        us = int((time.monotonic() - started) * 1e6)
        if returns == 1 and result is None and not execution.borrowed:
            execution.answer = m.Done(message.seq, us), b""
            return
        name = execution.name
        try:
            if returns == m.DYNAMIC:
                result, returns = self._dynamic(execution, result), 1
            if returns == 1:
                values: Any = (result,)
            elif returns == 0:
                values = ()
            else:
                values = tuple(result)
                if len(values) != returns:
                    raise ValueError(f"{name} must return {returns} values (num_returns), but returned {len(values)}")
            packed = [codec.pack(value, f"the return value of {name}") for value in values]
            if returns == 1 and packed[0].size <= INLINE_LIMIT and not packed[0].refs:
                hseq = runtime.flush_refs_numbered() if execution.borrowed else 0
                execution.answer = m.Done(message.seq, us, hseq), packed[0].as_bytes()
                return
            outs: list[tuple[int, int, bytes]] = []
            pieces: list[bytes] = []
            for index, one in enumerate(packed):
                if one.size > INLINE_LIMIT or one.refs:
                    id_ = ids.object_id(inbound.prefix, message.seq, index)
                    offset, size = runtime.objects.write(id_, one)
                    outs.append((size, offset, id_))
                else:
                    data = one.as_bytes()
                    outs.append((len(data), 0, b""))
                    pieces.append(data)
        except BaseException as error:
            self.error(execution, error, started)
            return
        hseq = runtime.flush_refs_numbered()
        execution.answer = m.DoneMany(message.seq, us, hseq, outs), b"".join(pieces)

    def _dynamic(self, execution: Execution, result: Any) -> DynamicObjectRefGenerator:
        """Each item becomes an object of this worker's; the refs to them are the value. An error is the last item."""
        objects, name = self._runtime.objects, execution.name
        try:
            items = iter(result)
        except TypeError:
            raise TypeError(
                f"{name} has num_returns='dynamic': it must return an iterable, not {result!r:.100}"
            ) from None
        refs: list[ObjectRef[Any]] = []
        try:
            for item in items:
                refs.append(objects.put(item))
        except Exception as error:
            if wants_retry(execution, error):
                raise
            refs.append(objects.put_error(pack_error(self._runtime, error, name)))
        return DynamicObjectRefGenerator(refs)

    def item(self, execution: Execution, index: int, value: Any) -> None:
        """One item of a stream."""
        runtime, message, inbound = self._runtime, execution.message, execution.inbound
        one = codec.pack(value, f"item {index} of {execution.name}")
        if one.size > INLINE_LIMIT or one.refs:
            id_ = ids.object_id(inbound.prefix, message.seq, index)
            offset, size = runtime.objects.write(id_, one)
            hseq = runtime.flush_refs_numbered()
            inbound.answer((m.Item(message.seq, index, size, offset, id_, hseq), b""))
            return
        inbound.answer((m.Item(message.seq, index), one.as_bytes()))

    def error(self, execution: Execution, error: BaseException, started: float) -> None:
        runtime, message = self._runtime, execution.message
        execution.outcome, execution.error = RAISED_ERROR, type(error).__name__
        retry = wants_retry(execution, error)
        packed = pack_error(runtime, error, execution.name)
        us = int((time.monotonic() - started) * 1e6)
        with runtime.lock:
            for entry in packed.refs:
                runtime.objects.publish_locked(entry)
        hseq = runtime.flush_refs_numbered() if execution.borrowed or packed.refs else 0
        execution.answer = m.Failed(message.seq, us, hseq, False, retry), packed.as_bytes()

    def cancelled(self, execution: Execution, started: float) -> None:
        execution.outcome = CANCELLED
        us = int((time.monotonic() - started) * 1e6)
        hseq = self._runtime.flush_refs_numbered() if execution.borrowed else 0
        execution.answer = m.Failed(execution.message.seq, us, hseq, True), b""


def pack_error(runtime: Runtime, error: BaseException, name: str) -> codec.Packed:
    """The error value for an exception: with the exception itself where that can travel."""
    told = ex.TaskError.from_exception(error, name, pid=os.getpid(), node=runtime.node_ip)
    try:
        packed = codec.pack(told, f"the exception of {name}", error=True)
        # What does not load here will not load there either.
        codec.unpack(memoryview(packed.as_bytes()), runtime.objects.entries)
    except Exception:
        packed = codec.pack(told.without_cause(), f"the exception of {name}", error=True)
    return packed


def wants_retry(execution: Execution, error: BaseException) -> bool:
    """Whether the caller has asked for this exception to be retried."""
    extra = execution.message.extra
    retry = extra.retry if extra is not None else b""
    if not retry:
        return False
    if retry == ANY_EXCEPTION:
        return isinstance(error, Exception)
    try:
        return isinstance(error, pickle.loads(retry))
    except Exception:  # classes that do not load here were not raised here
        return False
