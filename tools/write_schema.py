"""Write the published JSON Schema of `sched.json`: `python -m tools.write_schema`."""

from slimdeploy.files import write_text
from slimdeploy.schedule import SCHEMA_FILE, schema_text

if __name__ == "__main__":
    write_text(SCHEMA_FILE, schema_text())
