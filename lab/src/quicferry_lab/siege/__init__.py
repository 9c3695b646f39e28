"""A server under attack, and a good client beside it: ``python -m quicferry_lab.siege``.

Each attack has a server of its own, a good client with 20 requests a second, and an attacker; all
are processes. First the client is alone with the server, then the attack begins. What counts is how
long the client waits, and how much memory the server takes.
"""
