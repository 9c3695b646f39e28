"""The demo: a live HTTP/3 server changes its address under load, on real sockets, unprivileged.

Its processes: the *demo* itself is the orchestrator (:mod:`.orchestrator`), the *server* is
``quicferry serve quicferry_lab.demo.app:app`` (:mod:`.app`), and the clients live in a few
*worker* processes (:mod:`.worker`). The orchestrator talks to the server through its management
socket only, and to the workers through their standard input and output.
"""
