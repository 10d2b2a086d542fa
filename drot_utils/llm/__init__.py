"""Machinery for servers: asking, reading replies, keeping answers, counting costs."""
