"""What tests read in pages of reports."""

import html
import json
import re

from tfcompress.cli.app import main

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def data_of(text):
    """What the page's script is given."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def without_scripts(text):
    return re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def cells_of(text, caption):
    """The rows of the table with a caption, as texts."""
    table = re.search(rf"<caption>{caption}.*?</table>", text, re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[dh]\b.*?>(.*?)</t[dh]>", row, re.DOTALL)
        ]
        for row in rows
    ]


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()
