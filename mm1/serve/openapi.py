"""The OpenAPI document of the server: its routes with the bodies that they take."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(app: FastAPI, bodies: dict[str, type[BaseModel]]) -> dict[str, Any]:
    """The document; `bodies` are what each path takes by POST."""
    written = get_openapi(
        title="mm1", version="1", routes=app.routes, description="OpenAI's protocol over a run of mm1"
    )
    schemas: dict[str, Any] = {"Error": _ERROR}
    refused = {"description": "why not", "content": _json({"$ref": "#/components/schemas/Error"})}
    for path, operations in written["paths"].items():
        for operation in operations.values():
            operation["responses"] |= dict.fromkeys(("4XX", "5XX"), refused)
            if path in bodies:
                schema = bodies[path].model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= schema.pop("$defs", {}) | {bodies[path].__name__: schema}
                name = bodies[path].__name__
                operation["requestBody"] = {
                    "required": True,
                    "content": _json({"$ref": f"#/components/schemas/{name}"}),
                }
    components = written.setdefault("components", {})
    components["schemas"] = schemas
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    written["security"] = [{"key": []}, {}]
    return written


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
