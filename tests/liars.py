"""A worker that lies: a gRPC proxy before a real one, whose answers to steps a test may change, hold back or repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from nbflow_workers import rpc

Frames = Callable[[bytes], Iterable[bytes]]


class Liar:
    """Forwards all that comes to its `address` to the worker at `target`. `lie(frame)`: what goes out for each frame of
    `Steps` that the worker answers with; None: the frame."""

    def __init__(self, target: str) -> None:
        self.lie: Frames | None = None
        self._channel = grpc.insecure_channel(target, rpc.CLIENT_OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(32), options=rpc.SERVER_OPTIONS)
        handlers = {m.name: self._handler(m) for m in rpc.METHODS.values()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(rpc.SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()
        self._server.stop(0).wait(10)

    def _handler(self, method: rpc.Method) -> Any:
        kind = ("stream" if method.request_stream else "unary", "stream" if method.reply_stream else "unary")
        forward = getattr(self._channel, "{}_{}".format(*kind))(method.path)

        def one(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return forward(request, timeout=context.time_remaining(), metadata=_metadata(context))
            except grpc.RpcError as error:
                return _end(context, error)

        def many(request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            call = forward(request, metadata=_metadata(context))
            context.add_callback(call.cancel)
            try:
                for frame in call:
                    lie = self.lie if method.name == "Steps" else None
                    yield from [frame] if lie is None else lie(frame)
            except grpc.RpcError as error:
                _end(context, error)

        make = getattr(grpc, "{}_{}_rpc_method_handler".format(*kind))
        return make(many if method.reply_stream else one)


def _metadata(context: grpc.ServicerContext) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in context.invocation_metadata() if k.startswith("nbflow-") or k == rpc.TOKEN_KEY]


def _end(context: grpc.ServicerContext, error: grpc.RpcError) -> Any:
    assert isinstance(error, grpc.Call)
    context.set_trailing_metadata(tuple(p for p in error.trailing_metadata() or () if p[0].startswith("nbflow-")))
    context.abort(error.code(), error.details() or "")
