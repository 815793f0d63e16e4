"Write README.md from index.ipynb: python tests/readme.py [FOLDER]"

import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
pictures = "nbs/images"  # where the figures of the README go, beside those that the index shows itself


def write_readme(
    target: Path = root,  # folder that README.md and its pictures are written to
) -> list:  # the files written, README.md first, relative to `target`
    "Convert the index to markdown, without its hidden cells"
    nb = nbformat.read(root / "index.ipynb", as_version=4)
    first = lambda o: o.source.strip().split("\n")[0].strip() if o.cell_type == "code" else ""
    nb.cells = [o for o in nb.cells if first(o) != "#| hide"]
    for o in nb.cells:
        o.metadata["tags"] = ["hide_input"] if first(o) == "#| hide_input" else []
    nb.metadata["language_info"] = dict(name="python")  # for the colours of the code
    text, made = MarkdownExporter(
        config=dict(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=["hide_input"]))
    ).from_notebook_node(nb, dict(output_files_dir=pictures, unique_key="README"))
    files = {"README.md": text.encode(), **made["outputs"]}
    for name, content in files.items():
        path = Path(target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(files)


if __name__ == "__main__":
    print("wrote", *write_readme(*map(Path, sys.argv[1:2])))
