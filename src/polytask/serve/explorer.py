"""The page that shows a bundle: a fixed list of files of this package, read once, and never by a path from outside."""

from hashlib import sha256
from pathlib import Path

from polytask.serve.reply import Headers, Reply

_FOLDER = Path(__file__).parent / "explorer"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LINK = b'<a href="/report"'
_HEADERS: Headers = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def pages(report: bytes | None = None, folder: Path = _FOLDER) -> dict[str, Reply]:
    """Path -> answer of the page and its assets, and of the ``report`` of a comparison, if there is one.

    The report says in itself what it may load, by the hashes of its scripts.
    """
    found = {}
    for file in sorted(folder.glob("*")):
        if file.suffix in _TYPES and file.is_file():
            body = file.read_bytes()
            if report is not None:
                body = body.replace(_LINK + b" hidden", _LINK)
            path = "/" if file.name == "index.html" else f"/assets/{file.name}"
            found[path] = _page(body, file.suffix, _HEADERS)
    if report is not None:
        found["/report"] = _page(
            report, ".html", ((b"content-security-policy", b"frame-ancestors 'none'"), *_HEADERS[1:])
        )
    return found


def _page(body: bytes, suffix: str, headers: Headers) -> Reply:
    tag = (b"etag", b'"%s"' % sha256(body).hexdigest()[:32].encode())
    return Reply(body, 200, _TYPES[suffix], (*headers, tag))


def unchanged(page: Reply, tags: bytes | None) -> bool:
    """Whether a client that has the versions ``tags`` of a page has this one."""
    return tags is not None and dict(page.headers)[b"etag"] in [t.strip().removeprefix(b"W/") for t in tags.split(b",")]
