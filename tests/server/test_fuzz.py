"""What a machine makes up from our own OpenAPI page never breaks the service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from serving import make_place, serving

from vsrn.server.security import Limits

OPERATIONS = [
    ("GET", "/api/search"),
    ("POST", "/api/search/photo"),
    ("GET", "/api/search/like"),
    ("GET", "/api/photos"),
    ("GET", "/api/folders"),
    ("GET", "/api/thumbnail"),
    ("GET", "/api/photo"),
    ("GET", "/api/original"),
    ("GET", "/api/path"),
    ("GET", "/api/explain"),
    ("GET", "/api/caption"),
    ("GET", "/api/about"),
    ("GET", "/api/indexing"),
    ("POST", "/api/indexing"),
    ("DELETE", "/api/indexing"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
quick = settings(
    max_examples=40,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a service that runs."""
    place = make_place(tmp_path_factory.mktemp("place"))
    with serving(place, limits=Limits(upload_bytes=5_000, upload_pixels=10_000)) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_is_tried(openapi: Any) -> None:
    found = {(method.upper(), path) for path, methods in openapi.raw_schema["paths"].items() for method in methods}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_service(openapi: Any, method: str, path: str, mode: GenerationMode) -> None:
    """Neither what the page allows nor what it does not; and statuses and fields are those that it promises."""
    operation = openapi[path][method]
    if mode.is_negative and not (operation.query or operation.body):
        pytest.skip("nothing can be asked wrongly here")

    @quick
    @given(case=operation.as_strategy(generation_mode=mode))
    def fuzz(case: Any) -> None:
        answer = case.call()
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, checks=CHECKS)

    fuzz()


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]
