"""The page /docs: the paths of an OpenAPI document with their examples, as HTML that loads nothing.

FastAPI's own page loads its scripts from the internet, which a server in a closed network does not reach.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }}
pre {{ background: #f4f4f4; padding: 0.7em; overflow-x: auto }}</style></head>
<body><h1>{title}</h1><p>{description}</p>
<p>Names, types and bounds of every key: <a href="/openapi.json">/openapi.json</a>.</p>
"""


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    parts = [_HEAD.format(title=escape(info["title"]), description=escape(info.get("description", "")))]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2>\n<p>{escape(operation.get('summary', ''))}</p>\n")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in content:
                parts.append(f"<pre>{escape(json.dumps(content['example'], indent=2, ensure_ascii=False))}</pre>\n")
    return "".join([*parts, "</body></html>\n"])
