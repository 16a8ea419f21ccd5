"""Run the notebooks and write them as .ipynb, with their pictures, beside the text.

    python notebooks/render.py                    # all of them
    python notebooks/render.py notebooks/x.py     # one

The .py files are the source; nothing of the machine or the moment goes into the rendered ones.
"""

import argparse
import pathlib
import re
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).resolve().parent
# Absolute paths and addresses of objects differ from one machine and run to the next.
MACHINE = [(re.compile(r"/(?:tmp|root|home|work|private|var|Users)/[^\s'\"<>)]*/"), ""),
           (re.compile(r" at 0x[0-9a-f]+"), "")]  # fmt: skip


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop timestamps, versions, counters and machine paths; number cells for stable ids."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output.output_type in ("execute_result", "display_data"):
                output.metadata = {}
            for holder in (output, output.get("data", {})):
                for key in ("text", "text/plain"):
                    if key in holder:
                        for pattern, plain in MACHINE:
                            holder[key] = pattern.sub(plain, holder[key])
    # Warnings and progress say nothing to a reader.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    return notebook


def render(source: pathlib.Path, target: pathlib.Path) -> None:
    """Execute one notebook and write it."""
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=1200, kernel_name="python3").execute(cwd=str(source.parent))
    nbformat.write(clean(notebook), target)


def main(arguments: list[str]) -> None:
    """Render what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="folder [default: beside the source]")
    chosen = parser.parse_args(arguments)
    sources = chosen.notebooks or sorted(p for p in HERE.glob("*.py") if p.name != "render.py")
    for source in sources:
        target = (chosen.out or source.parent) / source.with_suffix(".ipynb").name
        render(source, target)
        print(target.name)


if __name__ == "__main__":
    main(sys.argv[1:])
