"The package's metadata, read from settings.ini"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lines = lambda key: [o.strip() for o in cfg[key].splitlines() if o.strip()]
extras = {o: lines(f'{o}_requirements') for o in ('demo', 'notebooks', 'dev', 'book', 'minerl')}
extras['all'] = sorted({o for group in extras.values() for o in group})
readme = here/'README.md'

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    keywords=cfg['keywords'], license_expression='Apache-2.0', license_files=['LICENSE', 'NOTICE'], python_requires=f">={cfg['min_python']}",
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown',
    packages=find_packages(include=['dreamer4_nb*']), package_data=dict(dreamer4_nb=['pretrained/**']), install_requires=lines('requirements'), extras_require=extras,
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=['dreamer4_nb=dreamer4_nb._modidx:d']), zip_safe=False)
