"Write README.md from index.ipynb: python tests/readme.py [FOLDER]"

import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
PICTURES = "nbs/images"  # where the figures of the README are kept
HIDE_INPUT = "hide_input"


def first_line(cell) -> str:
    "The first line of a code cell, where its directive stands"
    if cell.cell_type != "code":
        return ""
    return cell.source.strip().split("\n")[0].strip()


def shown_cells(cells) -> list:
    "The cells that are not hidden; those that show only their output are tagged"
    shown = [cell for cell in cells if first_line(cell) != "#| hide"]
    for cell in shown:
        hidden_input = first_line(cell) == f"#| {HIDE_INPUT}"
        cell.metadata["tags"] = [HIDE_INPUT] if hidden_input else []
    return shown


def write_readme(
    target: Path = root,  # folder that README.md and its pictures are written to
) -> list[str]:  # the files written, README.md first, relative to `target`
    "Convert the index to markdown, without its hidden cells"
    notebook = nbformat.read(root / "index.ipynb", as_version=4)
    notebook.cells = shown_cells(notebook.cells)
    notebook.metadata["language_info"] = {"name": "python"}  # for the colours of the code
    remove_input = {"enabled": True, "remove_input_tags": [HIDE_INPUT]}
    exporter = MarkdownExporter(config={"TagRemovePreprocessor": remove_input})
    names = {"output_files_dir": PICTURES, "unique_key": "README"}
    text, resources = exporter.from_notebook_node(notebook, names)
    files = {"README.md": text.encode(), **resources["outputs"]}
    for name, content in files.items():
        path = Path(target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(files)


if __name__ == "__main__":
    print("wrote", *write_readme(*map(Path, sys.argv[1:2])))
