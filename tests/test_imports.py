"""No two files import each other, not even within functions; imports for type checking alone do not count."""

from __future__ import annotations

import grimp
import networkx

# Circles that stand for now, by the files in them. The list may shrink, never grow.
KNOWN: tuple[frozenset[str], ...] = ()


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Files that reach each other by imports."""
    edges = [(m, other) for m in graph.modules for other in graph.find_modules_directly_imported_by(m)]
    return [part for part in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(part) > 1]


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("hasten", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 200
    new = [sorted(part) for part in circles(graph) if not any(part <= known for known in KNOWN)]
    assert not new, f"files import each other in a circle: {new}"


def test_circles_are_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")):
        graph.add_import(importer=importer, imported=imported)
    assert [sorted(part) for part in circles(graph)] == [["a", "b", "c"]]
