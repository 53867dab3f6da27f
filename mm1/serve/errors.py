"""Errors as OpenAI's clients expect them: a status and an object with message, type, param and code."""

from typing import Any, Literal

Kind = Literal[
    "invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error", "server_error", "timeout"
]


class ApiError(Exception):
    """A request that is not answered, and why: in our own words, and with nothing of this machine in them."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        error = {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}
        return {"error": error}


def _kind(status: int) -> Kind:
    kinds: dict[int, Kind] = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kinds |= {408: "timeout", 504: "timeout"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """A request that is wrong in itself: status 400."""
    return ApiError(400, message, param=param, code=code)


def going() -> ApiError:
    """The error for whoever is not answered because the server ends."""
    return ApiError(
        503, "the server is about to end; ask another one", code="shutting_down", headers={"Retry-After": "5"}
    )


def client_gone() -> ApiError:
    """What the access log says of a client that left before its answer: nginx's status 499. Nobody else reads it."""
    return ApiError(499, "the client went away", code="client_gone")
