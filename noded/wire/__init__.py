"""The protocol: frames, messages, links, handshake. Knows no component."""
