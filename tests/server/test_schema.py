"""The served schema against the server: requests made of it, right and wrong ones, by schemathesis."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]


GENERATES = ["POST /v1/completions", "POST /v1/chat/completions"]
OTHERS = ["GET /v1/models", "GET /v1/models/{model}", "GET /health", "GET /metrics"]


@pytest.fixture(scope="module")
def operations(server) -> dict[str, Any]:
    """Operations of the schema that the server describes itself by."""
    served = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    return {operation.ok().label: operation.ok() for operation in served.get_all_operations()}


def test_every_path_is_described(operations):
    assert set(operations) == {*GENERATES, *OTHERS}


def _made_quick(body: Any, right: bool) -> None:
    """Name the model, of any other nothing is asked further, and ask for few tokens; a wrong body stays as wrong."""
    if not isinstance(body, dict):
        return
    model = body.get("model")
    if isinstance(model, str) and len(model) <= 256:
        body["model"] = "tiny"
    for name in ("max_tokens", "max_completion_tokens"):
        if right and body.get(name) is not None:
            body[name] = 2


@pytest.mark.fault("server", "requests of any form", now="answered as the served schema says, never by a crash")
@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in [*GENERATES, *OTHERS]),
        *((label, GenerationMode.NEGATIVE) for label in GENERATES),
    ],
    ids=str,
)
def test_answers_are_as_the_schema_says(operations, label, mode, record_property):
    tried = []

    @settings(
        max_examples=10 if label in GENERATES else 2,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        _made_quick(case.body, mode is GenerationMode.POSITIVE)
        tried.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    answered()
    record_property("cases", len(tried))
