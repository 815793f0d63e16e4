"The glossary says of each field of a configuration which chapter explains it"

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from dreamer4_nb.config import Config

glossary = Path(__file__).resolve().parent.parent / "nbs/book/glossary.md"


def field_names():
    "Names of all sections and of their fields."
    names = set()
    for section in fields(Config):
        names.add(section.name)
        value = getattr(Config(), section.name)
        if is_dataclass(value):
            names |= {field.name for field in fields(value)}
    return names


def test_every_field_is_in_the_glossary():
    text = glossary.read_text(encoding="utf-8").split("## Fields of a configuration")[1]
    listed = set(re.findall(r"`(\w+)`", text))
    assert sorted(field_names() - listed) == []
    assert sorted(listed - field_names()) == []
