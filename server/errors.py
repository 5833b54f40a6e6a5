"""Errors in the form that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from clada.command_line import one_line
from clada.errors import CladaError


class ErrorDetail(BaseModel):
    """Reason of an error, for people and for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Answer to a request that is not carried out."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 413: "request_too_large", 429: "rate_limit_exceeded"}


class RequestError(CladaError):
    """Error of a request.

    Args:
        message: Reason, and remedy.
        status: Status of the answer.
        param: Field that is wrong.
        code: Name of the error, for programs.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_content(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Content of the answer to a request that failed: a line of text, whatever was given, cut where it is long."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    named = None if param is None else one_line(param)
    detail = ErrorDetail(message=one_line(message), type=kind, param=named, code=code or _CODES.get(status))
    return ErrorAnswer(error=detail).model_dump()


def error_response(
    message: str,
    status: int,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Answer to a request that failed; arguments as of RequestError."""
    return JSONResponse(error_content(message, status, param, code), status, dict(headers or {}))
