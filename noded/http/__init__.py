"""The HTTP side of a node: imported with the first request, so that an idle node does not carry it.

`gateway` is what the daemon sees and imports no HTTP library; `server` and `auth` are what it imports when
needed; `view` is all that they know of the node.
"""
