"""What docs/running.md and the files of deploy/ name is there, and the service keeps what they promise."""

from __future__ import annotations

import http.client
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from serving import Place, serving

from vsrn.server.security import Access

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs/running.md").read_text(encoding="utf-8")
UNITS = ["vsrn.service", "vsrn-index.service"]
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
TOKEN = "0123456789abcdef"


def settings(unit: str) -> dict[str, str]:
    lines = (DEPLOY / unit).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def command(unit: str) -> list[str]:
    return shlex.split(settings(unit)["ExecStart"])


def test_the_page_and_the_folder_name_the_same_files() -> None:
    named = set(re.findall(r"deploy/([\w.-]*\w)", PAGE))
    assert named == {path.name for path in DEPLOY.iterdir()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for text in (PAGE, CONTAINER):
        for listed in re.findall(r"'\.\[([\w,]+)\]'", text):
            assert set(listed.split(",")) <= set(extras)


@pytest.mark.parametrize(
    "words",
    [*map(command, UNITS), ["vsrn", *json.loads(re.findall(r"^CMD (\[.*\])$", CONTAINER, re.MULTILINE)[0])]],
    ids=[*UNITS, "Containerfile"],
)
def test_their_commands_have_these_options(words: list[str]) -> None:
    program, name, *rest = words
    assert Path(program).name == "vsrn"
    known = inspect.signature(importlib.import_module(f"vsrn.cli.{name}").main).parameters
    options = {word for word in rest if word.startswith("--")}
    assert {option.removeprefix("--").replace("-", "_") for option in options} <= set(known)
    assert {word for word in rest if word.startswith("-")} - options <= {"-o"}


def test_the_service_may_write_nowhere_and_the_indexer_in_its_index_alone() -> None:
    service, indexer = map(settings, UNITS)
    for unit in (service, indexer):
        assert unit["ProtectSystem"] == "strict"
        assert unit["User"] == "vsrn"
        assert unit["NoNewPrivileges"] == "yes"
        assert not set(unit) & {"ReadWritePaths", "BindPaths", "CacheDirectory", "LogsDirectory"}
    assert "StateDirectory" not in service
    index = command(UNITS[1])[command(UNITS[1]).index("-o") + 1]
    assert Path(index).is_relative_to(Path("/var/lib", indexer["StateDirectory"]))
    assert command(UNITS[0])[2] == index
    assert indexer["PrivateNetwork"] == "yes"


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_where_it_is_here_understands_its_unit(unit: str, tmp_path: Path) -> None:
    assert {"Unit", "Service", "Install"} == set(re.findall(r"^\[(\w+)\]$", (DEPLOY / unit).read_text(), re.MULTILINE))
    if analyze := shutil.which("systemd-analyze"):
        text = (DEPLOY / unit).read_text().replace("/opt/vsrn/bin/vsrn", sys.executable)
        (tmp_path / unit).write_text(text)
        run = subprocess.run([analyze, "verify", str(tmp_path / unit)], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr) == (0, "")


def test_behind_a_proxy_as_the_recipes_say_the_cookie_is_for_tls_alone(tmp_path: Path) -> None:
    nginx = (DEPLOY / "nginx.conf").read_text()
    passed = dict(re.findall(r"proxy_set_header ([\w-]+) (\S+);", nginx))
    assert passed == {"Host": "$http_host", "X-Forwarded-Proto": "$scheme"}
    name = command(UNITS[0])[command(UNITS[0]).index("--allow-host") + 1]
    assert f"server_name {name};" in nginx
    assert f"\n{name} {{\n" in (DEPLOY / "Caddyfile").read_text()
    # What these two then send here, by the headers that a browser gives them.
    headers = {"Host": name, "Origin": f"https://{name}", "Authorization": f"Bearer {TOKEN}"}
    access = Access(TOKEN, frozenset({name}), local=False)
    with serving(Place(tmp_path, tmp_path / "none"), access) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        for scheme, secure in (("https", True), ("http", False)):
            connection.request("POST", "/api/session", headers=headers | {"X-Forwarded-Proto": scheme})
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, "Secure" in (answer.headers["Set-Cookie"] or "")) == (204, secure)
        connection.close()


def test_the_container_has_what_it_needs_and_its_health_check_tells_a_service_that_runs(tmp_path: Path) -> None:
    for sources in re.findall(r"^COPY (.+) \S+$", CONTAINER, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    copied = " ".join(re.findall(r"^COPY (.+)$", CONTAINER, re.MULTILINE)).split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], "src", "docs", "pyproject.toml", "LICENSE"} <= set(copied)
    assert re.findall(r"^USER (\w+)$", CONTAINER, re.MULTILINE) == ["vsrn"]
    python, *check = json.loads(re.findall(r"^HEALTHCHECK CMD (\[.*\])$", CONTAINER, re.MULTILINE)[0])
    assert (python, ":8000/healthz" in check[1]) == ("python", True)
    with serving(Place(tmp_path, tmp_path / "none"), Access(TOKEN, local=False)) as address:
        asked = [sys.executable, check[0], check[1].replace("http://127.0.0.1:8000", address)]
        assert subprocess.run(asked, check=False).returncode == 0
    assert subprocess.run(asked, check=False, stderr=subprocess.DEVNULL).returncode == 1
