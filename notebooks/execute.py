"""Execute the notebooks, cell by cell, with progress; then a table: notebook, seconds, result.

python notebooks/execute.py --to outputs     # executed copies and every picture in them go to outputs/
python notebooks/execute.py --in-place       # stores the outputs in the notebooks themselves
"""

import argparse
import base64
import hashlib
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


class Client(NotebookClient):
    """A notebook client that says which cell it is at."""

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.cell_type == "code":
            self.cells_done = getattr(self, "cells_done", 0) + 1
            print(
                f"\r{self.label}  cell {self.cells_done} of {self.cells_in_all}", end="", flush=True
            )
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def execute(path):
    """(the executed notebook, seconds, "ok" or the error's first line)."""
    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        timeout=600,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.label, client.cells_in_all = (
        f"{path.stem:<32}",
        sum(c.cell_type == "code" for c in notebook.cells),
    )
    start, result = time.time(), "ok"
    try:
        client.execute()
    except CellExecutionError as error:
        result = f"FAILED {error.ename}: {error.evalue}".splitlines()[0]
    except (CellTimeoutError, DeadKernelError) as error:
        result = f"FAILED {error}".splitlines()[0]
    notebook.metadata.pop("widgets", None)  # GitHub refuses notebooks with half of the widget state
    notebook.metadata["language_info"].pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps
        if (
            cell.cell_type == "code"
        ):  # a stored widget is dead: a panel leaves its picture, a progress bar nothing
            for output in cell.outputs:
                if output.get("data", {}).pop(WIDGET, None) and "image/png" not in output["data"]:
                    output["data"] = {}
            cell.outputs = [o for o in cell.outputs if o.get("data", True)]
    return notebook, time.time() - start, result


def stamp(notebook):
    """What stored outputs depend on: code cells, teaching model, judge and trained B-LoRAs."""
    parts = [cell.source.encode() for cell in notebook.cells if cell.cell_type == "code"]
    data = HERE.parent / "data"
    for folder in ("bloras", "judge", "tiny_controlnet", "tiny_sdxl"):
        parts += [path.read_bytes() for path in sorted((data / folder).rglob("*.safetensors"))]
    digests = [hashlib.sha256(part).digest() for part in parts]
    return hashlib.sha256(b"\0".join(digests)).hexdigest()[:16]


def write_pictures(notebook, stem, folder):
    count = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                count += 1
                (folder / f"{stem}_{count:02}.png").write_bytes(
                    base64.b64decode(output["data"]["image/png"])
                )
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, metavar="FOLDER")
    where.add_argument("--in-place", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all")
    args = parser.parse_args()
    table = []
    for path in args.notebooks or [
        *sorted(HERE.glob("[0-9]*.ipynb")),
        *(sorted(HERE.glob("solutions/*.ipynb")) if args.in_place else []),
    ]:
        notebook, seconds, result = execute(path)
        print(f"\r{path.stem:<32}  {seconds:5.0f} s  {result}", flush=True)
        pictures = 0
        if args.in_place and result == "ok":
            notebook.metadata["outputs_belong_to"] = stamp(notebook)
            nbformat.write(notebook, path)
        elif args.to:
            args.to.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, args.to / path.name)
            pictures = write_pictures(notebook, path.stem, args.to)
        table.append((path.stem, seconds, pictures, result))
    print(f"\n{'notebook':<32}  seconds  pictures  result")
    for stem, seconds, pictures, result in table:
        print(f"{stem:<32}  {seconds:7.0f}  {pictures:8}  {result}")
    print(f"{'together':<32}  {sum(row[1] for row in table):7.0f}")
    if args.to:
        print(f"\nExecuted notebooks and pictures are in {args.to}/")
    return 0 if all(row[3] == "ok" for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
