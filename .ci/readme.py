#!/usr/bin/env python3
"""README.md is the guided tour nbs/index.ipynb, with its links bent to work from the repository
root.

    .ci/readme.py           write README.md
    .ci/readme.py --check   say so and exit 1 when README.md is out of step

Code cells become fenced blocks; a cell tagged `hide` stays in the notebook. A line `<!-- include
PATH -->` takes in a table that a report has written as CSV, so that the README's numbers are
those of the reports."""

import csv
import json
import posixpath
import re
import sys
from pathlib import Path

NOTICE = '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit it there, then `make check`. -->'

CODE = re.compile(r'^(```|~~~).*?^\1[^\n]*$|`+[^`\n]+`+', re.MULTILINE | re.DOTALL)
LINKS = [
    # [text](target) and ![text](target "title")
    re.compile(r'(?P<before>\]\(\s*<?)(?P<target>[^)\s>]+)'),
    # [label]: target
    re.compile(r'(?P<before>^\[[^\]]+\]:\s*<?)(?P<target>[^\s>]+)', re.MULTILINE),
    re.compile(r"(?P<before>\b(?:src|href)\s*=\s*[\"'])(?P<target>[^\"']+)"),  # <img src="target">
]
# a scheme, an anchor on the page, an absolute path
ELSEWHERE = re.compile(r'[a-zA-Z][a-zA-Z0-9+.-]*:|[#/]')


def from_root(target, folder):
    "The link `target`, relative to `folder`, as it reads from the repository root."
    if ELSEWHERE.match(target):
        return target
    path, mark, anchor = target.partition('#')
    path = posixpath.normpath(posixpath.join(folder, path))
    if path.startswith('..'):
        raise ValueError(f'nbs/index.ipynb links to {target}, which lies outside the repository')
    return path + mark + anchor


def bend_links(text, folder):
    "`text` with every relative link read from the repository root; code stays as it is."

    def bend(prose):
        for link in LINKS:
            prose = link.sub(lambda m: m['before'] + from_root(m['target'], folder), prose)
        return prose

    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [bend(text[end : code.start()]), code[0]]
        end = code.end()
    return ''.join([*parts, bend(text[end:])])


INCLUDE = re.compile(r'^<!-- include (\S+) -->$', re.MULTILINE)


def table(text):
    "A report's table in CSV as Markdown; a value with its bounds becomes one cell again."
    titles, *lines = csv.reader(text.splitlines())
    shown = [place for place, title in enumerate(titles) if not title.endswith((', low', ', high'))]
    bounds = {
        place: (place + 1, place + 2)
        for place in shown
        if titles[place + 1 : place + 2] == [f'{titles[place]}, low']
    }

    def cell(line, place):
        low, high = (line[at] for at in bounds.get(place, (place, place)))
        value = line[place].replace('|', '\\|') or '–'
        return f'{value} <small>({low} to {high})</small>' if place in bounds and low else value

    rows = [
        ['' if titles[at] == 'row' else titles[at] for at in shown],
        ['---'] * len(shown),
        *([cell(line, at) for at in shown] for line in lines),
    ]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def readme(notebook, folder='nbs', read=lambda path: ''):
    """The README that the parsed `notebook`, which lies in `folder`, makes; `read` gives the text
    of an included file."""
    blocks = [NOTICE]
    for cell in notebook['cells']:
        source = ''.join(cell['source']).strip()
        if not source or 'hide' in cell['metadata'].get('tags', []):
            continue
        if cell['cell_type'] == 'markdown':
            source = INCLUDE.sub(lambda m: table(read(from_root(m[1], folder))), source)
            blocks.append(bend_links(source, folder))
        elif cell['cell_type'] == 'code':
            code = re.sub(r'^#\s*\|.*\n?', '', source, flags=re.MULTILINE).strip()
            if code:
                blocks.append(f'```python\n{code}\n```')
    return '\n\n'.join(blocks) + '\n'


def main(arguments, root):
    source, target = root / 'nbs' / 'index.ipynb', root / 'README.md'
    if arguments not in ([], ['--check']):
        return 'usage: .ci/readme.py [--check]'
    if not source.exists():
        return 'nbs/index.ipynb is missing, and README.md is made from it'
    try:
        text = readme(
            json.loads(source.read_text(encoding='utf-8')),
            read=lambda path: (root / path).read_text(encoding='utf-8'),
        )
    except (ValueError, OSError) as error:
        return str(error)
    if target.exists() and target.read_text(encoding='utf-8') == text:
        return 0
    if arguments:
        return 'README.md is out of step with nbs/index.ipynb: run .ci/readme.py'
    from encapnet.files import write_atomic  # only here: `--check` runs on any Python

    write_atomic(target, text)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
