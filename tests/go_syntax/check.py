"""Is the Go program on standard input well-formed? For machines without Go, whose gofmt would tell."""

import sys

import tree_sitter
import tree_sitter_go


def faults(node):
    if node.is_error or node.is_missing:
        yield node
    elif node.has_error:
        for child in node.children:
            yield from faults(child)


source = sys.stdin.buffer.read()
tree = tree_sitter.Parser(tree_sitter.Language(tree_sitter_go.language())).parse(source)
found = [
    f"line {node.start_point.row + 1}: {'missing ' + node.type if node.is_missing else 'not Go'}"
    for node in faults(tree.root_node)
]
sys.exit("\n".join(found) or 0)
