"""One file per dataset: ``to_example(row)``, a pure function that returns an example, several or ``None``.

``Rows`` finds it by the file's name (``adapter=judgebench``). A source without an ``id`` column is read with
the row's number as its id. ``chosen`` may always be candidate 1: who is shown as A, a hash of the id decides.
"""
