"""Who is let in, by what a browser or a program sends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import pytest
from fastapi.testclient import TestClient
from serving import HOME, Place, make_place

from vsrn.server.app import STATIC, create_app
from vsrn.server.indexing import Indexer
from vsrn.server.security import Access, is_loopback, names_of

TOKEN = "a token of some length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PHOTO = "/api/thumbnail?id=00.png"
OPEN = ["/", "/docs", "/openapi.json", "/static/main.js", "/healthz", "/readyz"]
CLOSED = [
    PHOTO,
    "/api/about",
    "/api/photos",
    "/api/search?sentence=red",
    "/api/photo?id=00.png",
    "/metrics",
    "/nowhere",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    """Of a service for this machine only."""
    yield from client_of(place, Access())


@pytest.fixture
def guarded(place: Place) -> Iterator[TestClient]:
    """Of a service with a token."""
    yield from client_of(place, Access(TOKEN, names_of("0.0.0.0", ("Photos.example",))))


def client_of(place: Place, access: Access) -> Iterator[TestClient]:
    with TestClient(create_app(Indexer(place.idx, access), place.open()), base_url=HOME) as client:
        yield client


# What a browser sends for the page itself, a link to it, an image or a fetch on somebody else's page, and so on.
SAME = {"Origin": HOME, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
TYPED = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FRAME = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
NEIGHBOUR = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (PHOTO, {}, 200),
        (PHOTO, SAME, 200),
        (PHOTO, TYPED, 200),
        (PHOTO, {"Host": "127.0.0.1:8000"}, 200),
        (PHOTO, {"Host": "[::1]:8000"}, 200),
        (PHOTO, {"Host": "LOCALHOST.:8000"}, 200),
        ("/", LINK, 200),
        ("/?q=dogs", LINK, 200),
        ("/docs", LINK, 200),
        # DNS rebinding: the page's own name leads here.
        (PHOTO, {"Host": "evil.example"}, 421),
        (PHOTO, {"Host": "localhost.evil.example"}, 421),
        (PHOTO, {"Host": "evil.example:80", "Origin": "http://evil.example:80"}, 421),
        (PHOTO, {"Host": ""}, 421),
        ("/", {"Host": "evil.example"}, 421),
        # Pages of others.
        (PHOTO, {"Origin": "http://evil.example"}, 403),
        (PHOTO, {"Origin": "null"}, 403),
        (PHOTO, {"Origin": "http://localhost:3000"}, 403),
        (PHOTO, {"Origin": "http://evil.example/?http://localhost"}, 403),
        (PHOTO, IMAGE, 403),
        (PHOTO, NEIGHBOUR, 403),
        (PHOTO, LINK, 403),
        ("/", FRAME, 403),
        ("/", IMAGE, 403),
        ("/static/main.js", IMAGE, 403),
        ("/api/about", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
    ],
)
def test_only_our_own_page_and_programs_are_answered(
    client: TestClient, path: str, headers: Mapping[str, str], status: int
) -> None:
    answer = client.get(path, headers=dict(headers))
    assert answer.status_code == status
    if status != 200:
        assert answer.json().keys() == {"detail"}


@pytest.mark.parametrize("headers", [LINK, {"Origin": "http://evil.example"}, IMAGE])
def test_others_may_not_post_either(client: TestClient, headers: Mapping[str, str]) -> None:
    for path in ("/", "/api/search/photo", "/api/session"):
        assert client.post(path, headers=dict(headers), content=b"photo").status_code == 403


def test_nothing_of_the_photos_is_open_without_the_token(guarded: TestClient) -> None:
    for path in OPEN:
        assert guarded.get(path).status_code == 200, path
    for path in CLOSED:
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.post("/api/search/photo", content=b"photo").status_code == 401
    wrong = ["Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \x80"]
    for value in wrong:
        assert guarded.get(PHOTO, headers={b"Authorization": value.encode("latin1")}).status_code == 401, value
    assert guarded.get(PHOTO, headers=BEARER).status_code == 200
    assert guarded.get(PHOTO, headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_a_browser_trades_the_token_for_a_cookie(guarded: TestClient) -> None:
    for given in ({}, {"Authorization": "Bearer nonsense of some length"}):
        answer = guarded.post("/api/session", headers=given)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
    assert guarded.get("/api/session", headers=BEARER).status_code == 401
    answer = guarded.post("/api/session", headers=BEARER)
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert guarded.get(PHOTO).status_code == 200
    (name,) = guarded.cookies
    guarded.cookies.clear()
    assert guarded.get(PHOTO, headers={"Cookie": f"{name}=another"}).status_code == 401


def test_names_are_those_that_were_given(guarded: TestClient) -> None:
    for host, status in [("photos.example", 200), ("192.168.0.7:8000", 200), ("other.example", 421)]:
        assert guarded.get(PHOTO, headers=BEARER | {"Host": host}).status_code == status


def test_browsers_are_told_to_be_strict_whatever_the_answer(client: TestClient) -> None:
    for path, headers in [
        ("/", {}),
        (PHOTO, {}),
        ("/nowhere", {}),
        ("/", {"Host": "evil.example"}),
        ("/api/search", {}),
    ]:
        answer = client.get(path, headers=headers)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.7", False),
        ("no such name", False),
        ("x" * 300, False),
        ("", False),
    ],
)
def test_what_is_this_machine_alone(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


def test_nothing_is_loaded_from_elsewhere() -> None:
    """Every address in the page and its parts is relative, a namespace, or behind a click."""
    found = {address for file in STATIC.iterdir() for address in re.findall(r"https?://[^\s\"'`]+", file.read_text())}
    assert found == {"http://www.w3.org/2000/svg"}
