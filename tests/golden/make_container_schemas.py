"""Makes the JSON Schemas of `examples/containers`: `python -m tests.golden.make_container_schemas`.

Needs `pip install skypilot kubernetes-validate`, which the tests do without. Of Kubernetes' schema of a Job, whose
parts name each other by the hundred, what `job.yaml` uses is kept: another field asks for this to be run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KUBERNETES, SKYPILOT = HERE / "kubernetes_job.schema.json", HERE / "skypilot_task.schema.json"
VERSION = "v1.37.0-local-strict"


def kubernetes() -> dict[str, Any]:
    from importlib.resources import files

    folder = files("kubernetes_validate") / "kubernetes-json-schema" / VERSION
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    job = json.loads((folder / "job-batch-v1.json").read_text())
    manifest = yaml.safe_load((ROOT / "examples" / "containers" / "job.yaml").read_text())

    def small(schema: dict[str, Any], values: Iterable[Any]) -> dict[str, Any]:
        """A schema with the properties that these values have, and no descriptions."""
        while "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        kept = {key: value for key, value in schema.items() if key in ("type", "enum", "required", "oneOf", "format")}
        if "properties" in schema:
            mappings = [value for value in values if isinstance(value, dict)]
            used = {name: [one[name] for one in mappings if name in one] for name in schema["properties"]}
            kept["additionalProperties"] = False
            kept["properties"] = {name: small(schema["properties"][name], some) for name, some in used.items() if some}
        elif isinstance(schema.get("additionalProperties"), dict):
            kept["additionalProperties"] = small(schema["additionalProperties"], ())
        if "items" in schema:
            kept["items"] = small(schema["items"], [item for value in values for item in value])
        return kept

    return {"$comment": f"Kubernetes {VERSION}, Apache-2.0; made by {Path(__file__).name}", **small(job, [manifest])}


def skypilot() -> dict[str, Any]:
    from importlib.metadata import version

    from sky.utils import schemas

    task = schemas.get_task_schema()
    task["properties"]["resources"] = schemas.get_resources_schema()
    task["properties"]["file_mounts"] = {"type": "object", "additionalProperties": schemas.get_storage_schema()}
    return {"$comment": f"SkyPilot {version('skypilot')}, Apache-2.0; made by {Path(__file__).name}", **task}


if __name__ == "__main__":
    for file, schema in ((KUBERNETES, kubernetes()), (SKYPILOT, skypilot())):
        file.write_text(json.dumps(schema, sort_keys=True, default=list) + "\n")
