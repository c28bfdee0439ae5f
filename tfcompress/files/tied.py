"""Imported first by the server that processes are forked from: it ends with the benchmark.

What it imports next takes so long that it would not notice.
"""

from tfcompress.files import children

children.end_with_parent()
