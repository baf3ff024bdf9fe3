"""Execute the notebooks, cell by cell, with progress; then a table: notebook, seconds, result.

python notebooks/execute.py --to outputs     # executed copies and their pictures go to outputs/
python notebooks/execute.py --in-place       # stores the outputs in the notebooks themselves
"""

import argparse
import base64
import hashlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "blora_nb" / "data"
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS_PER_CELL = 600


class Run(NamedTuple):
    """A line of the table."""

    notebook: str
    seconds: float
    pictures: int
    result: str  # "ok", or "FAILED" and the first line of the error


class Client(NotebookClient):
    """A notebook client that says which cell it is at."""

    def __init__(self, notebook: NotebookNode, path: Path):
        super().__init__(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(path.parent)}},
        )
        self.label = f"{path.stem:<32}"
        self.done = 0
        self.total = len(code_cells(notebook))

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, **options):
        if cell.cell_type == "code":
            self.done += 1
            print(f"\r{self.label}  cell {self.done} of {self.total}", end="", flush=True)
        return await super().async_execute_cell(cell, cell_index, **options)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(path: Path) -> tuple[NotebookNode, float, str]:
    """The executed notebook, the seconds it took, and the result as in `Run`."""
    notebook = nbformat.read(path, as_version=4)
    start = time.time()
    result = "ok"
    try:
        Client(notebook, path).execute()
    except CellExecutionError as error:
        result = f"FAILED {error.ename}: {error.evalue}".splitlines()[0]
    except (CellTimeoutError, DeadKernelError) as error:
        result = f"FAILED {error}".splitlines()[0]
    seconds = time.time() - start
    remove_traces(notebook)
    return notebook, seconds, result


def remove_traces(notebook: NotebookNode) -> None:
    """Remove what differs from run to run, and what is dead without a kernel."""
    # GitHub refuses notebooks with half of the widget state
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"].pop("version", None)
    for cell in notebook.cells:
        # timestamps
        cell.metadata.pop("execution", None)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            keep_one_picture(output)
        cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def keep_one_picture(output: NotebookNode) -> None:
    """A panel leaves its picture, a progress bar nothing, a PIL image its PNG without the JPEG."""
    data = output.get("data", {})
    widget = data.pop(WIDGET, None)
    if "image/png" in data:
        data.pop("image/jpeg", None)
    elif widget:
        output["data"] = {}


def stamp(notebook: NotebookNode) -> str:
    """What stored outputs depend on: code cells, teaching model, judge, eyes and B-LoRAs.

    The ControlNet is in no lesson.
    """
    parts = [cell.source.encode() for cell in code_cells(notebook)]
    models = [
        path for path in DATA.rglob("*.safetensors") if path.parent != DATA / "tiny_controlnet"
    ]
    parts += [path.read_bytes() for path in sorted(models)]
    digests = [hashlib.sha256(part).digest() for part in parts]
    return hashlib.sha256(b"\0".join(digests)).hexdigest()[:16]


def write_pictures(notebook: NotebookNode, stem: str, folder: Path) -> int:
    """Write every picture among the outputs as a file; returns how many there were."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for number, picture in enumerate(pictures, 1):
        (folder / f"{stem}_{number:02}.png").write_bytes(base64.b64decode(picture))
    return len(pictures)


def print_table(runs: list[Run]) -> None:
    print(f"\n{'notebook':<32}  seconds  pictures  result")
    for run in runs:
        print(f"{run.notebook:<32}  {run.seconds:7.0f}  {run.pictures:8}  {run.result}")
    print(f"{'together':<32}  {sum(run.seconds for run in runs):7.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, metavar="FOLDER")
    where.add_argument("--in-place", action="store_true")
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all")
    args = parser.parse_args()

    paths = args.notebooks
    if not paths:
        paths = sorted(HERE.glob("[0-9]*.ipynb"))
        if args.in_place:
            paths += sorted(HERE.glob("solutions/*.ipynb"))
    if args.to:
        args.to.mkdir(parents=True, exist_ok=True)

    runs = []
    for path in paths:
        notebook, seconds, result = execute(path)
        print(f"\r{path.stem:<32}  {seconds:5.0f} s  {result}", flush=True)
        pictures = 0
        if args.to:
            nbformat.write(notebook, args.to / path.name)
            pictures = write_pictures(notebook, path.stem, args.to)
        elif result == "ok":
            notebook.metadata["outputs_belong_to"] = stamp(notebook)
            nbformat.write(notebook, path)
        runs.append(Run(path.stem, seconds, pictures, result))

    print_table(runs)
    if args.to:
        print(f"\nExecuted notebooks and pictures are in {args.to}/")
    return 0 if all(run.result == "ok" for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
