"""A migration on a connection: the client's side, the server's side, and their paths."""
