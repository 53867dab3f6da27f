"""The chat page: one static file, which may load nothing and talk to nobody but its own server."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

PAGE = Path(__file__).with_name("page.html")


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers, which allow exactly its own script and style."""
    text = PAGE.read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def page() -> Response:
    """The answer to a browser that opens the server's address."""
    text, headers = _page()
    return Response(text, headers=headers, media_type="text/html")
