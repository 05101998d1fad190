"""Connections that send nothing, too little, too slowly or too much: others are served meanwhile."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image
from serving import Place, make_place, serving

from vsrn.server.connections import OneLineASecond
from vsrn.server.security import Limits

HALF_A_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "
# None of these tests takes nearly as long; a service that never acts fails them all the same.
PATIENCE = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@contextlib.contextmanager
def connected(address: str, first: bytes = b"") -> Iterator[socket.socket]:
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(first)
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            content += part
    return content


def upload_head(num_bytes: int) -> bytes:
    return f"POST /api/search/photo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def photo() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(content, "PNG")
    return content.getvalue()


def post_photo(address: str) -> int:
    request = urllib.request.Request(f"{address}/api/search/photo", data=photo(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def healthy(address: str) -> bool:
    with urllib.request.urlopen(f"{address}/healthz", timeout=PATIENCE) as answer:
        return bool(json.load(answer) == {"status": "alive"})


@pytest.mark.parametrize("first", [b"", HALF_A_REQUEST])
def test_a_request_that_does_not_come_is_cut_off(place: Place, first: bytes) -> None:
    with serving(place, limits=Limits(head_seconds=0.2)) as address, connected(address, first) as connection:
        answer = read_to_end(connection)
        if first:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert json.loads(body) == {"detail": "the request took too long to arrive; send it again."}
        else:
            assert answer == b""
        assert healthy(address)


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
@pytest.mark.parametrize(
    "first", [HALF_A_REQUEST, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n"]
)
def test_a_byte_now_and_then_gains_no_time(place: Place, before: bytes, first: bytes) -> None:
    """Neither in the first request of a connection nor in a later one, nor in a body that nobody reads."""
    with (
        serving(place, limits=Limits(head_seconds=0.3)) as address,
        connected(address, before + first) as connection,
        pytest.raises((ConnectionError, EOFError)),
    ):
        drip(connection)


def drip(connection: socket.socket) -> None:
    """Send a byte at a time until the other side ends it, and raise `ConnectionError` or `EOFError` then."""
    connection.settimeout(0.02)
    for _ in range(PATIENCE * 50):
        connection.sendall(b"a")
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65_536):
                raise EOFError


REQUEST = b"GET /static/main.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@contextlib.contextmanager
def reading_nothing(address: str) -> Iterator[socket.socket]:
    """A connection with little room for answers."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        yield connection


def test_an_answer_that_is_not_taken_is_dropped(place: Place) -> None:
    """1,200 answers of 9 KB are more than the buffers of both sides hold."""
    limits = Limits(answer_seconds=0.3, head_seconds=PATIENCE)
    with serving(place, limits=limits) as address, reading_nothing(address) as connection:
        connection.sendall(REQUEST * 1_200)
        with pytest.raises(ConnectionError):
            send_slowly(connection)
        assert healthy(address)


def send_slowly(connection: socket.socket) -> None:
    for _ in range(PATIENCE * 20):
        connection.sendall(b"a")
        time.sleep(0.05)


def test_requests_are_not_gathered_without_end(place: Place) -> None:
    """50 MB of requests, sent before the first answer is read."""
    limits = Limits(answer_seconds=PATIENCE, head_seconds=PATIENCE)
    with serving(place, limits=limits) as address, reading_nothing(address) as connection:
        with pytest.raises(ConnectionError):
            connection.sendall(REQUEST * 1_000_000)
        assert healthy(address)


def test_requests_in_one_breath_are_all_answered(place: Place) -> None:
    last = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with serving(place) as address, connected(address, REQUEST * 100 + last) as connection:
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 101


def test_a_newcomer_takes_the_place_of_the_one_that_was_idle_longest(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(place, limits=Limits(connections=10, head_seconds=PATIENCE)))
        idle = [stack.enter_context(connected(address, HALF_A_REQUEST)) for _ in range(10)]
        assert healthy(address)
        assert read_to_end(idle[0]) == b""
        newcomers = [stack.enter_context(connected(address, HALF_A_REQUEST)) for _ in range(30)]
        for connection in newcomers[-5:]:
            connection.sendall(b"a\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert read_to_end(newcomers[0]) == b""


def test_where_all_connections_are_in_work_a_newcomer_is_refused(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    content = photo()
    head = upload_head(len(content)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(place, limits=Limits(connections=8, pause_seconds=PATIENCE)))
        working = [stack.enter_context(connected(address, head)) for _ in range(8)]
        for connection in working:
            assert connection.recv(12) == b"HTTP/1.1 100"
        for _ in range(PATIENCE * 10):
            assert read_to_end(stack.enter_context(connected(address))) == b""
            if "a connection was refused" in caplog.text:
                break
            time.sleep(0.1)  # there is one line a second, and another test may have had it
        else:
            pytest.fail("no line of the log says it")
        for connection in working:
            connection.sendall(content)
            assert b"HTTP/1.1 200" in read_until(connection, b"200")
    # Their places are free again, and nothing was miscounted.
    with serving(place, limits=Limits(connections=8)) as address:
        for _ in range(30):
            assert healthy(address)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    content = b""
    while end not in content and (part := connection.recv(65_536)):
        content += part
    return content


def test_stalled_photos_do_not_hold_up_others(place: Place) -> None:
    """Three bytes each of more photos than may arrive at once; those that stalled first are told to come again."""
    limits = Limits(pause_seconds=PATIENCE, upload_seconds=PATIENCE)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(place, limits=limits))
        stalled = []
        for _ in range(limits.arriving_at_once + 8):
            stalled.append(stack.enter_context(connected(address, upload_head(10_000) + b"abc")))
            assert healthy(address)  # so that they begin in this order
        assert [post_photo(address) for _ in range(3)] == [200] * 3
        assert stalled[0].recv(12) == b"HTTP/1.1 429"
        assert stalled[-1].send(b"d") == 1


def test_a_photo_that_pauses_is_given_up_and_one_that_goes_on_is_not(place: Place) -> None:
    content = photo()
    with serving(place, limits=Limits(pause_seconds=0.5, upload_seconds=PATIENCE)) as address:
        with connected(address, upload_head(10_000) + b"abc") as connection:
            assert b" 408 " in connection.recv(20)
        with connected(address, upload_head(10_000)) as connection:
            assert b" 408 " in connection.recv(20)
    with serving(place, limits=Limits(pause_seconds=PATIENCE, upload_seconds=0.2)) as address:
        with connected(address, upload_head(len(content)) + content) as connection:
            assert b" 200 " in connection.recv(20)
        with connected(address, upload_head(10_000) + b"abc") as connection:
            assert b" 408 " in connection.recv(20)


def test_parts_of_photos_have_a_share_of_memory(place: Place) -> None:
    with (
        serving(place, limits=Limits(arriving_bytes=6_000, pause_seconds=PATIENCE)) as address,
        connected(address, upload_head(5_000) + b"x" * 4_000) as first,
    ):
        assert post_photo(address) == 200  # a small one has room beside it
        with connected(address, upload_head(5_000) + b"x" * 4_000) as second:
            assert b" 429 " in first.recv(20)
            second.sendall(b"x" * 1_000)
            assert b" 400 " in second.recv(20)  # it came whole, and is no photo


TWICE = [
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.0\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    b"no request at all\r\n\r\n",
]


@pytest.mark.parametrize("request_", TWICE)
def test_a_request_whose_end_is_told_twice_ends_the_connection(place: Place, request_: bytes) -> None:
    second = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with serving(place) as address, connected(address, request_ + second) as connection:
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2]).keys() == {"detail"}


def test_who_hangs_up_leaves_nothing_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with serving(place) as address:
        for first in (b"", HALF_A_REQUEST, upload_head(10_000), upload_head(10_000) + b"abc"):
            for _ in range(3):
                with connected(address, first):
                    pass
            assert healthy(address)
    assert caplog.text == ""


def test_a_body_in_pieces_is_read_as_ever(place: Place) -> None:
    content = photo()
    request = b"POST /api/search/photo HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    request += b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    with serving(place) as address, connected(address, request) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_request_for_a_web_socket_is_answered_like_any_other(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with serving(place) as address, connected(address, head) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert caplog.text == ""


def test_one_warning_a_second_is_written_and_every_error() -> None:
    few = OneLineASecond(iter([100.0, 100.5, 100.9, 101.1, 101.2, 103.0]).__next__)
    records = [logging.LogRecord("test", logging.WARNING, "", 1, "%d refused", (5,), None) for _ in range(6)]
    left_out = "5 refused ({} such lines left out before)"
    written = [record.getMessage() for record in records if few.filter(record)]
    assert written == ["5 refused", left_out.format(2), left_out.format(1)]
    error = logging.LogRecord("test", logging.ERROR, "", 1, "broken", (), None)
    assert [few.filter(error), few.filter(error)] == [True, True]
