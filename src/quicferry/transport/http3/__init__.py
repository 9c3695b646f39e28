"""HTTP/3 on a connection that may move: messages, limits, and the state to be carried."""
