"""How commands that look at a running gateway ask its admin port."""

from __future__ import annotations

import sys
from typing import Any

import click

URL = "http://127.0.0.1:8081"


def ask(url: str, path: str, key: str, params: dict[str, str] | None = None) -> Any:
    """The JSON at a path. Ends the program with 3 when nobody answers, 2 when the question was wrong, 1 at another error."""
    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url.rstrip("/") + path, params=params, headers=headers, timeout=10.0, trust_env=False)
        value = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        click.echo(f"no gateway answers at {url} ({type(error).__name__}); is it the admin port?", err=True)
        sys.exit(3)
    if answer.status_code >= 400:
        message = value.get("error", {}).get("message", answer.text[:200]) if isinstance(value, dict) else answer.text[:200]
        click.echo(f"{url}{path}: {message}", err=True)
        sys.exit(2 if answer.status_code == 400 else 1)
    return value
