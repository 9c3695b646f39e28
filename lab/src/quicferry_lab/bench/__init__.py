"""The figures that quicferry promises, measured: ``make bench``.

Speed is only compared within one run, against a peer that takes turns with quicferry; figures of
the simulation are in virtual time, and the same on every machine.
"""
