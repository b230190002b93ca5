"""What a server is told: where to listen, whom to answer, and how much anyone may ask of it."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from polytask.errors import ConfigError

_TOKEN = 16  # characters; a shorter token can be guessed
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """How much one client may ask for. Sizes are bytes, times seconds.

    ``body``, ``head`` and ``depth`` bound a request and the nesting of its JSON. It must have arrived within ``read``,
    is worked on for at most ``work``, and has ``drain`` to end once the server is told to stop, after ``notice`` in
    which it still takes requests but says it is not ready. At most ``queue`` requests wait for the worker thread, and
    ``connections`` are open. Answers over at most ``inline`` items that need no prediction do not go through the
    queue. A new bundle is warmed up for ``warm``, and looked for every ``watch``.
    """

    body: int = 1 << 20
    head: int = 16 << 10
    depth: int = 32
    read: float = 10.0
    work: float = 5.0
    drain: float = 10.0
    notice: float = 0.5
    queue: int = 64
    connections: int = 1000
    inline: int = 20_000
    warm: float = 3.0
    watch: float = 1.0


@dataclass(frozen=True)
class Options:
    """A server to start: the ``bundle`` (a folder, or a link to one) and where to listen.

    Any address but the loopback's needs a ``token_file``, whose token every request must bear, and the ``hosts`` it is
    reached by, unless it is reached by its address. ``workers`` are processes, each with its own copy of the bundle.
    With ``watch`` a new bundle behind the same path is loaded by itself; without, at SIGHUP. ``report`` is the page of
    a comparison, which the explorer links to; pages are shown without a token, so it goes with none.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    hosts: tuple[str, ...] = ()
    workers: int = 1
    watch: bool = False
    report: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers = {self.workers} must be at least 1")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port = {self.port} must be from 0 to 65535")
        if not self.local and self.token_file is None:
            raise ConfigError(
                f"host = {self.host} is open to other machines; name a file that holds a token with --token-file"
            )
        if self._address is not None and self._address.is_unspecified and not self.hosts:
            raise ConfigError(f"host = {self.host}: say by which name it is reached with --allow-host")

        if self.report is not None and self.token_file is not None:
            raise ConfigError("a report is shown without a token, and there is a token file; leave out --report")

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host == "localhost" or (self._address is not None and self._address.is_loopback)

    @property
    def allowed(self) -> frozenset[str]:
        """The names a request may call this server by, in lower case and without port."""
        named = self.hosts if self._address is not None and self._address.is_unspecified else (self.host, *self.hosts)
        return frozenset(name.lower().strip("[]") for name in (*named, *(_LOCAL if self.local else ())))

    def token(self) -> str | None:
        """The token of ``token_file``; one that is missing or short is a :class:`ConfigError`."""
        if self.token_file is None:
            return None
        try:
            found = self.token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{self.token_file} cannot be read; it must hold the token, as text") from None
        if len(found) < _TOKEN or not (found.isascii() and found.isprintable()) or " " in found:
            raise ConfigError(f"{self.token_file}: the token must be {_TOKEN} or more ASCII characters without spaces")
        return found

    def page(self) -> bytes | None:
        """The report's page; one that cannot be read, or is no page, is a :class:`ConfigError`."""
        if self.report is None:
            return None
        try:
            found = self.report.read_bytes()
        except OSError:
            found = b""
        if b"<html" not in found[:1000].lower():
            raise ConfigError(f"{self.report} is no report; name the report.html of a comparison")
        return found

    @property
    def _address(self) -> IPv4Address | IPv6Address | None:
        try:
            return ip_address(self.host)
        except ValueError:
            return None
