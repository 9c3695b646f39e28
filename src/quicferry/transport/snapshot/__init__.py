"""Connections as bytes, and as connections again: format, records, freeze and thaw."""
