"The package's metadata, read from settings.ini"

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def lines(key: str) -> list[str]:
    "The lines of a setting that are not empty"
    return [line.strip() for line in settings[key].splitlines() if line.strip()]


names = ("demo", "notebooks", "dev", "book", "minerl", "minari", "lerobot")
extras = {name: lines(f"{name}_requirements") for name in names}
extras["all"] = sorted({line for group in extras.values() for line in group})
readme = here / "README.md"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    keywords=settings["keywords"],
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=f">={settings['min_python']}",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    packages=find_packages(include=["dreamer4_nb*"]),
    package_data={"dreamer4_nb": ["py.typed", "pretrained/**", "templates/**"]},
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["dreamer4_nb=dreamer4_nb._modidx:d"],
    },
    zip_safe=False,
)
