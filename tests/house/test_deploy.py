"""deploy/: what an image would run can be run, and its parts know one another's names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from gateway.cli.main import main
from gateway.config.load import load

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "deploy/compose.yaml")
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of a command line of ours; click's error when it is none."""
    context = main.make_context("slo-gateway", list(arguments))
    verb, command, rest = main.resolve_command(context, list(arguments))
    assert command is not None
    return {"verb": verb} | command.make_context(verb, rest, parent=context).params


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_every_service_runs_a_command_that_exists(service: str) -> None:
    assert parsed(COMPOSE["services"][service]["command"])["verb"] in ("serve", "engine")


def test_the_gateway_of_the_compose_file_knows_its_engines_by_their_services_and_ports() -> None:
    loaded = load(ROOT / "deploy/compose.gateway.yaml")
    engines = {name: parsed(service["command"]) for name, service in COMPOSE["services"].items() if service["command"][0] == "engine"}
    instances = {urlsplit(url).hostname: urlsplit(url).port for pool in loaded.settings.pools.values() for url in pool.instances}
    assert instances == {name: options["port"] for name, options in engines.items()}
    assert {options["model"] for options in engines.values()} == {model.name for model in loaded.settings.models}
    published = COMPOSE["services"]["gateway"]["ports"]
    assert [port.split(":")[-1] for port in published] == [str(loaded.settings.listen.port)]
    assert loaded.settings.listen.host == "0.0.0.0"


def test_the_image_runs_a_gateway_that_can_be_reached_and_copies_what_exists() -> None:
    command = parsed(json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1]))
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert (command["verb"], command["host"]) == ("serve", "0.0.0.0")
    assert command["file"] in DOCKERFILE.replace(f'"{command["file"]}"', "", 1)
    assert not [name for line in copied for name in line.split() if not (ROOT / name).exists()]
    assert f"EXPOSE {load().settings.listen.port}" in DOCKERFILE
