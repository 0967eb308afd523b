"""What does a client do when its server fails? A proxy on loopback that fails as it is told, and else passes all on.

A request goes on with the Host header it came with. AWS signs that header, so a server that checks the signature
against the Host it is sent, as SeaweedFS does, takes the proxy's address for its own.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import urlparse

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass
class Fault:
    """What happens to some requests of a method whose path holds a text: `times` of them, after the first `spared`."""

    method: str
    path: str = ""
    spared: int = 0
    times: int = 1
    status: int | None = None
    """Answered with this, instead of being passed on."""
    delay: float = 0.0
    """Seconds until it is passed on."""
    after: int | None = None
    """Bytes of the answer's body before it is broken off; at 0 not even its head is sent."""
    how: Literal["reset", "close", "short"] = "reset"
    """The connection is reset; it is closed in order; or the body is said to end here."""

    def takes(self, method: str, path: str) -> bool:
        """Whether it befalls this request, which is counted."""
        if self.times < 1 or method != self.method or self.path not in path:
            return False
        if self.spared:
            self.spared -= 1
            return False
        self.times -= 1
        return True


@dataclass
class FaultProxy:
    """A context: the server at `target`, reached at `url`, with faults that may be added at any time."""

    target: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    """Method, path, and whether a fault befell it."""

    ended: threading.Event = field(default_factory=threading.Event)
    """Nobody is kept waiting any longer."""

    def __enter__(self) -> FaultProxy:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault_of(self, method: str, path: str) -> Fault | None:
        """The fault that befalls a request."""
        with self._lock:
            fault = next((fault for fault in self.faults if fault.takes(method, path)), None)
            self.requests.append((method, path, fault is not None))
        return fault


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    address = urlparse(proxy.target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = b"".join(self._chunks()) if self._is_chunked() else self._read(self.headers["Content-Length"])
            fault = proxy.fault_of(self.command, self.path)
            if fault is not None and fault.status is not None:
                self.send_response(fault.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault is not None and proxy.ended.wait(fault.delay):
                self.close_connection = True
                return
            self._answer(body, fault)

        def _is_chunked(self) -> bool:
            return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

        def _read(self, length: str | None) -> bytes:
            return self.rfile.read(int(length or 0))

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers end with an empty line
                pass

        def _answer(self, body: bytes, fault: Fault | None) -> None:
            server = http.client.HTTPConnection(address, timeout=60)
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":  # answered here: the body has been read
                    server.putheader(name, value)
            server.endheaders(
                [body] if self._is_chunked() and body else body or None, encode_chunked=self._is_chunked()
            )
            said = server.getresponse()
            content = said.read()
            server.close()
            if fault is not None and fault.after == 0:
                self._break_off(fault)
                return
            sent = content if fault is None or fault.after is None else content[: fault.after]
            short = fault is not None and fault.how == "short"
            self.send_response_only(said.status)
            for name, value in said.getheaders():
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            length = said.getheader("Content-Length") if self.command == "HEAD" else len(sent if short else content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            try:
                self.wfile.write(sent)
            except ConnectionError:  # whoever asked waits no longer
                self.close_connection = True
                return
            if fault is not None and len(sent) < len(content) and not short:
                self._break_off(fault)

        def _break_off(self, fault: Fault) -> None:
            self.wfile.flush()
            time.sleep(0.05)  # what was sent arrives first
            if fault.how == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing: requests are kept."""

    return Handler
