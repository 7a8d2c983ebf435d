"""The page in a browser: its files, which know nothing of the model but its name, so that no token is asked for."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

from rrm_jax.serving.service import Service

FILES = {"index.html": "text/html", "page.css": "text/css"} | dict.fromkeys(
    ("page.js", "events.js", "pictures.js"), "text/javascript"
)
_HOME = Path(__file__).parent / "page_files"
# Should a text ever be taken for markup, a browser still runs and loads nothing but these files.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, service: Service, token: bool) -> None:
    """`token`: whether the other routes ask for one, so that the page asks for it as well."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _file("index.html")

    @app.get("/page/about.json", include_in_schema=False)
    async def about() -> Any:
        return {"model": service.model.name, "token": token}

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return _file(name) if name in FILES else Response(status_code=404)


def _file(name: str) -> Response:
    return FileResponse(_HOME / name, media_type=FILES[name], headers=_HEADERS)
