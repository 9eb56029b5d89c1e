"""Certificates of an authority that a test makes, and a Redis that speaks TLS with them."""

import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authority:
    """A certificate authority with files of its own in `folder`."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def file(self) -> Path:
        file = self.folder / f"ca-{id(self):x}.pem"
        self.ca.cert_pem.write_to_path(str(file))
        return file

    def server(
        self, host: str = HOST, *, expired: bool = False, clients: bool = False
    ) -> ssl.SSLContext:
        """Build the TLS context of a server that has a certificate for `host`.

        Args:
            host: Name or address in the certificate.
            expired: Whether it was valid until yesterday.
            clients: Whether the server wants certificates of this authority from its clients.
        """
        day = dt.timedelta(days=1)
        end = dt.datetime.now(dt.UTC) - day if expired else None
        begin = end and end - day
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(host, not_before=begin, not_after=end).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client_options(self) -> str:
        """The options of a URL that name a client's certificate of this authority."""
        made = self.ca.issue_cert("agent@example.com")
        names = self.folder / f"client-{id(self):x}.pem", self.folder / f"key-{id(self):x}.pem"
        made.cert_chain_pems[0].write_to_path(str(names[0]))
        made.private_key_pem.write_to_path(str(names[1]))
        return f"ssl_certfile={names[0]}&ssl_keyfile={names[1]}"

    @staticmethod
    def locked(key: Path, password: bytes) -> bytes:
        """The private key in a file, encrypted."""
        found = serialization.load_pem_private_key(key.read_bytes(), None)
        return found.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )


@contextlib.contextmanager
def tls(context: ssl.SSLContext, target: int) -> Iterator[int]:
    """A port that speaks TLS and leads to the port `target`; yields it.

    With plain sockets: asyncio drops the alerts that say why a handshake failed.
    """
    listening = socket.create_server((HOST, 0))
    open_: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                threading.Thread(target=connect, args=(near,), daemon=True).start()

    def connect(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as near:
            far = socket.create_connection((HOST, target))
            open_.extend([near, far])
            back = threading.Thread(target=copy, args=(far, near), daemon=True)
            back.start()
            copy(near, far)
            back.join()

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for each in open_:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
