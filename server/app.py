"""Application of the server: paths, and the form of its errors."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from clada.contract.artifact import CHAT_TEMPLATE_NAME
from clada.errors import CladaError
from clada.server import answers
from clada.server.errors import ErrorAnswer, RequestError, error_response
from clada.server.gate import Access, Gate
from clada.server.pages import add_pages
from clada.server.places import FullError
from clada.server.requests import ChatRequest, CompletionRequest
from clada.server.service import GoneError, Service
from clada.version import __version__

_RETRY_SECONDS = "1"
_GONE = 499  # nobody reads it
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = {
    400: "The request asks for what cannot be done",
    401: "The API key is missing or wrong",
    403: "The server is called by another name, or by a page of another site",
    404: "There is no such model",
    408: "The request did not come in time",
    413: "The request is too large",
    429: "The server is full: try again later",
    500: "The server failed",
    503: "The server is stopping",
}


def _responses(*statuses: int, stream: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the answers of a path, for the schema."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": _REASONS[status], "model": ErrorAnswer} for status in (401, 403, *statuses)
    }
    if stream is not None:
        reason = f"The answer; where a stream is asked for, events whose data are {stream.__name__} in JSON, and [DONE]"
        found[200] = {"description": reason, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return found


_GENERATES = (400, 404, 408, 413, 429, 500, 503)


def make_app(service: Service, access: Access) -> Gate:
    """Make the ASGI application of a service, behind its gate."""
    app = FastAPI(title="clada", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_errors(app)
    _add_generation(app, service)
    _add_state(app, service)
    add_pages(app)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for path in described()["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)  # which FastAPI adds, and answers 400 here
        return described()

    app.openapi = openapi  # type: ignore[method-assign]
    return Gate(app, access, service.limits, service.metrics)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        found = error.errors()[0]
        place = [str(part) for part in found["loc"] if part != "body"]
        return error_response(f"{'.'.join(place) or 'the request'}: {found['msg']}", 400, place[0] if place else None)

    @app.exception_handler(FullError)
    async def full(_request: Request, error: FullError) -> Response:
        return error_response(str(error), 429, headers={"Retry-After": _RETRY_SECONDS})

    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> Response:
        return error_response(str(error), error.status, error.param, error.code)

    @app.exception_handler(CladaError)
    async def unusable(_request: Request, error: CladaError) -> Response:
        return error_response(str(error), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return error_response(
            f"{request.method} {request.url.path[:200]}: {error.detail}", error.status_code, headers=error.headers
        )

    @app.exception_handler(GoneError)
    async def gone(_request: Request, _error: GoneError) -> Response:
        return Response(status_code=_GONE)

    @app.exception_handler(Exception)
    async def failed(_request: Request, _error: Exception) -> Response:
        return error_response("the server failed; its log says why", 500)


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/completions",
        response_model=answers.Completion,
        responses=_responses(*_GENERATES, stream=answers.Completion),
        tags=["generation"],
    )
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continue prompts."""
        return await service.answer(request, body)

    @app.post(
        "/v1/chat/completions",
        response_model=answers.ChatCompletion,
        responses=_responses(*_GENERATES, stream=answers.ChatChunk),
        tags=["generation"],
    )
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer in a conversation."""
        return await service.answer(request, body)


def _add_state(app: FastAPI, service: Service) -> None:
    manifest = service.session.manifest
    card = answers.ModelCard(
        id=service.name,
        object="model",
        created=service.created,
        owned_by="clada",
        context_length=service.session.context_length,
        least_bytes=None if manifest.inputs is None else manifest.inputs.dial[-1].bytes,
        weight_bytes=service.weight_bytes,
        can_chat=service.session.artifact.content(CHAT_TEMPLATE_NAME) is not None,
    )

    @app.get("/v1/models", responses=_responses())
    async def models() -> answers.ListedModels:
        """List the model."""
        return answers.ListedModels(object="list", data=[card])

    @app.get("/v1/models/{model}", responses=_responses(404))
    async def model_card(model: str) -> answers.ModelCard:
        """Describe the model."""
        if model != card.id:
            raise RequestError(
                f"there is no model {model[:100]!r} here, but {card.id!r}", 404, "model", "model_not_found"
            )
        return card

    @app.get("/health", responses={503: {"description": "The server is stopping", "model": answers.Health}})
    async def health() -> JSONResponse:
        """Tell whether texts are generated."""
        well = service.scheduler.is_alive
        return JSONResponse({"status": "ok" if well else "stopping"}, 200 if well else 503)

    @app.get("/metrics", responses={**_responses(), 200: {"content": {_METRICS_TYPE: {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Tell Prometheus of the counts."""
        return Response(service.metrics.text(), media_type=_METRICS_TYPE)
