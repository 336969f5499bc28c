"""How a client and `tvmflow serve` show each other that they know the token, without telling it to anybody.

The client asks `GET /challenge/<its nonce>` and gets the server's nonce and proof, which is over both nonces, the role
and the port at which the server listens. Only then it begins TVM's handshake, with a key that has the client's proof:
the same with the other role. So what one side says is of no use as the other's, at another port, or again.

A server's nonce holds when it ends and is signed, so that strangers who ask for many cost the server no memory; what it
remembers are those that were used, which takes the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import threading
import time
from typing import Any

from tvmflow.remote import peers
from tvmflow.spec import DeviceError
from tvmflow.system.untrusted import shortened

PROTOCOL = "tvmflow-rpc-2"
NONCE_SECONDS = 10.0
"""How long a client may take from the server's proof to its own."""
MOST_USED = 1024
"""Nonces that were used and haven't ended: more sessions can't be begun in NONCE_SECONDS."""


def prove(token: str, role: str, client_nonce: str, server_nonce: str, port: int) -> str:
    """What only who knows the token can say as `role`, "server" or "client", of two nonces and the server port."""
    text = f"{PROTOCOL} {role} {client_nonce} {server_nonce} {port}"
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


class Challenges:
    """The server's side. Threads may share one."""

    def __init__(self, token: str, port: int) -> None:
        self.token, self.port = token, port
        self._secret = secrets.token_bytes(32)
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def answer(self, client_nonce: str) -> dict[str, Any]:
        """What is said to a client's nonce. Raises ValueError if it is none."""
        if not re.fullmatch("[0-9a-f]{32}", client_nonce):
            raise ValueError("a nonce is 32 hexadecimal digits")
        unsigned = f"{int(1e3 * (time.monotonic() + NONCE_SECONDS)):016x}{secrets.token_hex(16)}"
        nonce = unsigned + self._sign(client_nonce, unsigned)
        proof = prove(self.token, "server", client_nonce, nonce, self.port)
        return {"protocol": PROTOCOL, "port": self.port, "nonce": nonce, "proof": proof}

    def admits(self, key: str) -> bool:
        """Whether TVM's key shows a client that knows the token; once for each nonce."""
        match = re.fullmatch("client:([0-9a-f]{32}):([0-9a-f]{80}):([0-9a-f]{64})", key)
        if match is None:
            return False
        client_nonce, nonce, proof = match.groups()
        unsigned, signature = nonce[:48], nonce[48:]
        end, now = 1e-3 * int(nonce[:16], 16), time.monotonic()
        known = hmac.compare_digest(signature, self._sign(client_nonce, unsigned))
        proven = hmac.compare_digest(proof, prove(self.token, "client", client_nonce, nonce, self.port))
        if not (known and proven and now <= end):
            return False
        with self._lock:
            self._used = {used: until for used, until in self._used.items() if until >= now}
            if nonce in self._used or len(self._used) >= MOST_USED:
                return False
            self._used[nonce] = end
        return True

    def is_token_itself(self, key: str) -> bool:
        """Whether a client of tvmflow before this handshake, or one that was told the token, shows it openly."""
        return hmac.compare_digest(key.encode(), f"client:{self.token}".encode())

    def _sign(self, client_nonce: str, unsigned: str) -> str:
        return hmac.new(self._secret, f"{client_nonce} {unsigned}".encode(), hashlib.sha256).hexdigest()[:32]


def session_key(port: int, token: str, *, server_port: int | None = None, name: str = "") -> str:
    """The key with which `tvm.rpc.connect("127.0.0.1", port, key=…)` begins one session, within NONCE_SECONDS.

    `server_port` is where the server listens, if a tunnel's end `port` is another; `name` is the board for people.
    Raises DeviceError, "auth" if what answers doesn't prove that it knows the token: then it was told nothing.
    """
    name = name or f"{peers.LOOPBACK}:{port}"
    expected = server_port or port
    client_nonce = secrets.token_hex(16)
    try:
        said = peers.get(port, f"challenge/{client_nonce}")
    except (OSError, ValueError) as error:
        raise DeviceError(f"No `tvmflow serve` answers on {name}: {shortened(str(error))}.", "unreachable") from error
    if "proof" not in said and said.get("status") == "ok":
        raise DeviceError(
            f"The `tvmflow serve` on {name} is of an older tvmflow, which would have to be told the token; nothing was "
            "sent to it. Update tvmflow there.",
            "auth",
        )
    nonce, proof, port_said = said.get("nonce"), str(said.get("proof")), said.get("port")
    if isinstance(nonce, str) and re.fullmatch("[0-9a-f]{80}", nonce) and proof.isascii():
        if hmac.compare_digest(proof, prove(token, "server", client_nonce, nonce, expected)):
            proof = prove(token, "client", client_nonce, nonce, expected)
            return f"{client_nonce}:{nonce}:{proof}"
        if isinstance(port_said, int):
            with contextlib.suppress(ValueError):  # a number that is too long
                if hmac.compare_digest(proof, prove(token, "server", client_nonce, nonce, port_said)):
                    raise DeviceError(
                        f"What answers at {name} is the server of port {port_said}, or passes on what that one says; "
                        f"nothing was sent to it. A tunnel needs the same port at both ends: {port_said}.",
                        "auth",
                    )
    raise DeviceError(
        f"What answers at {name} doesn't know the token; nothing was sent to it. If it is the board's server, copy the "
        "token file that `tvmflow serve` names there.",
        "auth",
    )
